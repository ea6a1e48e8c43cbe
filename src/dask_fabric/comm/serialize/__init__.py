"""What the codec needs of ``distributed``, and of arrays that it does not serialize itself."""
