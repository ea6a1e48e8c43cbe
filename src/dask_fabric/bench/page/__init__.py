"""Results as one HTML page, which needs no network: it includes bokeh, which draws the plots."""
