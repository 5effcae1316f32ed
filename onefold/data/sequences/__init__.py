"""Long sequences that are no texts, and what is known of each: expressions, delays, pictures, sound."""
