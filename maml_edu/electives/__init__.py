"""The methods of notebooks 09 to 14, each another way to adapt or to pull back."""
