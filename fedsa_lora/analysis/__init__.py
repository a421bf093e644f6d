"""Work on a finished run: models, frames, measures of similarity."""
