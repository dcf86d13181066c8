"""Programs that write data folders in LLaVA's format. ``minillava`` reads those folders and never imports this."""
