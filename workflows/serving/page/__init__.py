"""The page at `/`: plain files, no build step; `routes.router` serves them."""
