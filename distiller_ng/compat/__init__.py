"""Other libraries' ways of calling what is built here (layer 5)."""
