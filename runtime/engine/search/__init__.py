"""Ways from logits to tokens: each next token drawn, beams, contrastive candidates.

A search is told what the model said and says what is to be fed; it never runs the model.
"""
