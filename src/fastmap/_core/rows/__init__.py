"""Keys and values as bytes: dtypes to codecs, rows and columns."""
