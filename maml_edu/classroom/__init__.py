"""What notebooks and teachers use: claims, exercises with checks, progress, handouts, slides."""
