"""Other people's files as plain values.

Knows no class of the other rooms; nobody has to read it to understand LLaVA.
"""
