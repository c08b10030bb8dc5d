from workflows.bench import encode_device
from workflows.bench.encode_device import Size

SIZE = Size(64, (32, 64), (64, 128, 1, 4), chunk=4, chunks=2, most=2, pictures=2, dtype="float32")


def test_the_jobs_encoder_is_measured_without_ray() -> None:
    told = encode_device.run(1, size=SIZE).to_json()
    assert told["ratio"] > 0 and told["share_of_peak"] is None
    assert set(told["rates"]["latents"]) == {"1", "2"} and set(told["batch"]) == {"latents", "features"}
    # A ViT's linear layers: 12 width^2-like products and the attention, counted by hand for one layer.
    tokens, width, hidden = 16, 64, 128
    linear = 2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width
    patches = 2 * tokens * 3 * 16 * 16 * width
    assert told["gflop_per_image"]["features"] * 1e9 >= linear + patches
