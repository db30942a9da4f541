"""Texts that follow a JSON Schema, a regular expression, a list of choices or a grammar.

A `StructuredOutput` says what a text is to be. A `GrammarCompiler` makes a `Grammar` of it with
llguidance (https://github.com/guidance-ai/llguidance), which the extra `structured` installs, and a
`GrammarConstraint` of that takes all other tokens from the logits of one request. Nothing here imports
llguidance before the first grammar is compiled.
"""
