"""The graph contract, the bundle manifest, and the passes that rewrite traced graphs.

`graphs.contract` and `graphs.manifest` use the standard library only, because the runtime imports
them; everything else here may import onnx and onnx_ir.
"""
