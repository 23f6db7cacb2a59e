"""Typed primitives."""

if __name__ != "latelier.blocks":  # Python was started inside the checkout and would load a second copy
    raise ImportError("import latelier.blocks, not blocks")
