"""The main job from an empty machine to a served model, and the page that shows what came of it."""
