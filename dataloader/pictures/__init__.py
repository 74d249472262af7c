"""Pictures as files: headers, completeness, decoding."""
