"""Other people's files as plain values. Nothing here knows a class of the other rooms, and nobody has to read it to
understand LLaVA."""
