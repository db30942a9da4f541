"""One loop for all generation: sequences that come and go, and what each step does with them.

| module | holds |
|---|---|
| `request` | what to do with one prompt |
| `sequence` | a request on its way: its tokens, its rows of the cache, why it ended |
| `call` | sequences that came together, with one search and one set of limits |
| `scheduler` | who waits, who is read next and how much of it, who takes a decode step |
| `slots` | the rows of the KV cache: taken, freed, copied, kept dense |
| `memory` | what the rows may take together |
| `engine` | the step itself |
| `turns` | which of the threads that wait for texts steps the engine |
| `search` | sampling, beam search, contrastive search: from logits to tokens |
"""
