"""Where tasks come from: sines, characters and the episodes drawn from them, goals on a plane."""
