"""The check of a bundle's graphs, before ONNX Runtime sees them.

ONNX Runtime does what a graph asks for: it computes what depends on no input while it loads, makes
copies of weights as its kernels want them, and some of its kernels trust the shapes that they are
given. A stranger's graph may ask for anything, so that a graph is loaded only if its memory and its
kernels' reads and writes are known beforehand. Why nothing gets past this:

- **Nothing is skipped.** A field, an operator, an attribute, an input or an output that no rule knows
  is an error (`messages`, `operators`): no functions, subgraphs or custom operators.
- **All shapes are told.** The nodes are gone through in their order, each of values that are there
  already. The rule of its operator gives dtype and shape of what it makes: numbers, or products of the
  batch, the new tokens, the capacity and the wanted outputs (`sizes`). Numbers that shapes are made of
  are followed (`spans`). A shape that cannot be told, or does not agree with the others as the kernel
  takes them, is an error: so are scales, zero points and blocks that are not as many as their matrix
  wants.
- **Indices are proven to lie within** what they are of, and where the fused attention writes in the
  cache is what the passes compute of the graph's inputs, operator by operator, or an input itself.
- **All sizes are bounded** (`limits`). No value is larger than the largest of its kind in a model of
  the manifest's sizes; the number of operators is bounded by that of layers. What is computed of
  constants alone, what is packed, and what all weights read are each at most twice the weights file and
  a megabyte.
- **What the file tells of shapes is true**, as ONNX Runtime believes it. The versions of the operators
  are those that the rules are for.

What it rests on: that the inputs of a run are what the contract says, which the runtime sees to (that
`output_positions` are among the new tokens, for one, see `runtime.wanted_outputs`), and that sums of a
few sizes of a run and products of two of them fit in 32 bits.
"""
