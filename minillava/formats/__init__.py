"""File formats of other projects, read and written as plain values.

Uses no class of minillava's other packages. You need not read it to understand LLaVA.
"""
