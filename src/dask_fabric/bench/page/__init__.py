"""Results as one page of HTML that needs nothing else: its plots are bokeh's, which is in it."""
