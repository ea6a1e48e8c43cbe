"""Serialization outside the codec: what it needs of ``distributed``, and arrays on GPUs."""
