"""What a training run will take, told before anything is started: `oneflow train CONFIG --plan`."""
