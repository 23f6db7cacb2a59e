"""latelier: a workshop for image latents."""

__version__ = "0.1.0"
