"""Results as one page of HTML that needs nothing else: plots are SVG in it."""
