"""Typed primitives."""
