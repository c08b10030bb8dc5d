"""The config of a training run. Numbers name their unit; the text under a field says what it is for and why."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from oneflow_core.flows.schedule import build_schedule
from oneflow_core.flows.times import check_law
from workflows.config import Config
from workflows.training.layout import check_layout


class ModelSettings(Config):
    """The network. Channels, feature width and vocabulary are taken from the corpus and the tokenizer."""

    preset: Literal["nano", "1b", "3b", "8b"] = "nano"
    """Dimensions to begin with; nano is for two cores, the others are Llama 3's."""
    dims: dict[str, Any] = Field(default_factory=dict)
    """Fields of the preset to change, e.g. {width: 256, layers: 8}; any field of oneflow_core.model.ModelConfig."""

    llama: str | None = None
    """Directory of a Llama in Hugging Face's format whose trunk and embedding are the start; each worker must see it.
    Its dimensions must be those of the model, and data.tokenizer should be its own."""
    start: str | None = None
    """Model of ours whose weights are the start: models:/NAME@ALIAS, models:/NAME/VERSION, a directory or a URL.
    Dimensions, tokenizer, codec and encoder must be its own; the size of images, the objective's options, optimiser
    and data may differ. Its weights are part of the run: where the alias moves, the same config is another run."""
    start_sha256: str | None = None
    """SHA-256 of the weights of `start`, where no others will do; none: those that it has when the run begins."""

    @model_validator(mode="after")
    def _starts_once(self) -> "ModelSettings":
        if self.llama and self.start:
            raise ValueError(f"llama {self.llama} and start {self.start}: a run starts from one of them")
        if self.start_sha256 and not self.start:
            raise ValueError("start_sha256 without start: name the model that has these weights")
        return self


class MixtureSettings(Config):
    """How documents without fixed roles are used (oneflow_core.objectives.tasks.TaskMixture)."""

    concurrent: float = Field(0.2, ge=0, le=1)
    """Share of image-text pairs whose text and image are generated at once (paper 3.2: 0.2)."""
    text_to_image: float = Field(0.5, ge=0, le=1)
    """Share of text-to-image among the other pairs (not disclosed by the paper)."""
    prompt_dropout: float = Field(0.1, ge=0, le=1)
    """Share of examples whose prompt is dropped, for classifier-free guidance (Edit Flows: 0.1)."""
    story_prompt: float = Field(0.3, ge=0, le=1)
    """Share of interleaved documents whose first text is given as the prompt."""
    reencoded: float = Field(0.0, ge=0, le=1)
    """Share of interleaved documents whose finished images are shown as features, for sampling with reencode."""
    concurrent_times: str = "independent"
    """How t_text and t_img go together in pairs that are generated at once: independent (the paper's pretraining),
    interleaved (the image begins late), reversed (the text begins late), fixed (one time), fixed:<t>."""
    interleaved_times: str = "interleaved"
    """The same in interleaved documents; under all but interleaved the model does not learn where images go."""

    @field_validator("concurrent_times", "interleaved_times")
    @classmethod
    def _known_times(cls, law: str) -> str:
        return check_law(law)


class ObjectiveSettings(Config):
    """How documents are corrupted and the loss is weighed (oneflow_core.objectives.ObjectiveConfig)."""

    kind: Literal["oneflow", "transfusion", "masked"] = "oneflow"
    """oneflow, or a baseline on the same trunk, documents and tasks: transfusion (AR + FM) or masked (Mask + FM)."""
    schedule: str = "linear"
    """kappa: linear (the paper), cosine, power:<exponent>, table:<values>, or adaptive: a table fitted while training
    goes on, so that the loss of a missing token falls at equal pace. Held-out losses are then taken under linear, so
    that they compare. Not for transfusion."""
    adaptive_every: int = Field(500, ge=1)
    """Steps between two fits of adaptive; a table serves from that many steps after its fit on."""
    adaptive_share: float = Field(0.5, ge=0, lt=1)
    """How far adaptive goes from linear (0) to equal falls of the loss (1)."""
    adaptive_memory: float = Field(0.5, ge=0, lt=1)
    """What is left of adaptive's statistics after each fit."""
    mixture: MixtureSettings = MixtureSettings()
    """Tasks of documents without fixed roles."""
    image_weight: float = Field(1.0, ge=0)
    """Weight of the image loss beside the text loss."""
    image_loss: Literal["velocity", "clean"] = "velocity"
    """Where the image error is measured: velocity (the paper), or the clean latent, which weighs layout more."""
    image_time_mean: float = -0.6
    """Mean of the logit-normal law of image times; below 0 is biased to noise, where layout is decided."""
    image_time_std: float = Field(1.0, ge=0)
    """Its standard deviation; 0 means uniform times."""
    text_normaliser: Literal["batch", "constant", "length"] = "batch"
    """What divides the text loss: target tokens of the batch, `text_constant` a document, or the literal n of eq. 7."""
    text_constant: float = Field(128.0, gt=0)
    """Tokens that a document counts as under the constant normaliser."""
    time_weight: Literal["none", "hazard"] = "none"
    """hazard: weigh the text loss by kappa'/(1 - kappa), as Edit Flows does; none: the paper."""
    time_weight_cap: float = Field(20.0, gt=0)
    """Largest such weight."""
    complete_weight: float = Field(1.0, ge=0)
    """Weight of the text loss where an interleaved text is complete; more makes the model insert less."""
    max_text_tokens: int = Field(512, ge=1)
    """Tokens at which a text segment is cut, so that one document cannot fill a pack."""
    copies: int = Field(1, ge=1)
    """Corruptions of a document in one example; with model.dims.prompt_attention=prefix they share its prompt."""
    masked_length: int = Field(64, ge=1)
    """For masked: length that texts are filled up to with the end symbol, which is what it can write at most."""
    spurious: float = Field(0.1, ge=0)
    """Wrong tokens put into a text for each kept one, so that taking out is learnt; with model.dims.counts=free."""

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        if name != "adaptive":
            build_schedule(name)
        return name


class CorpusSettings(Config):
    """One corpus of the blend."""

    url: str
    """Directory of a sharded corpus (its `latest` is followed), of one version, or a manifest."""
    weight: float | None = Field(None, gt=0)
    """Share of the documents drawn from it, relative to the others; none: in proportion to its size."""


class DataSettings(Config):
    """The stream of packs. A global step reads `lanes * packs_per_lane` packs, whatever the number of workers."""

    corpora: list[CorpusSettings] = Field(min_length=1)
    """What is read."""
    tokenizer: str = "embedded"
    """Tokenizer: "embedded", a directory, or a hub name."""
    tokens: int = Field(2048, ge=16)
    """Tokens of one pack, text and image together: what one forward pass takes."""
    lanes: int = Field(4, ge=1)
    """Independent streams; workers / tensor_parallel must divide it, so it bounds how far a run can be spread."""
    packs_per_lane: int = Field(1, ge=1)
    """Packs of every lane in a global step; more means gradient accumulation."""
    window: int = Field(8192, ge=1)
    """Samples of a lane that are shuffled together; bounds how many shards are open at once."""
    look_ahead: int = Field(8, ge=1)
    """Documents, held in memory, among which the last ones of a pack are chosen; 1 keeps the reading order."""
    holdout: float = Field(0.02, ge=0, lt=1)
    """Fraction of documents (by digest of their key) that training never reads and the held-out loss is taken on."""
    heldout_packs: int = Field(4, ge=1)
    """Packs of every lane in the held-out loss; the same ones at each evaluation."""
    read_ahead: int = Field(2, ge=0)
    """Steps prepared before they are needed; 0 prepares them in the training thread."""
    reader: Literal["process", "thread"] = "process"
    """Where they are prepared. A process leaves Python's interpreter to the training thread; it costs some 300 MB of
    a worker's own and 2.5 s at the start."""
    cache_dir: str | None = None
    """Where shards from a remote URL are kept; none: ~/.cache/oneflow/shards."""
    cache_gb: float = Field(32.0, ge=0)
    """Size of that cache in GiB; with 0 samples are read from remote shards by ranges."""


class OptimiserSettings(Config):
    """The optimiser and its learning rate, a function of progress = max(step / steps, minutes / max_minutes)."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon takes the matrices of the trunk's blocks and leaves the rest to AdamW; its steps are as large as AdamW's."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate; small networks bear more than the 3e-4 of Edit Flows."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the mean of gradients (Edit Flows: 0.9)."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the mean of squared gradients (Edit Flows: 0.95)."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Nesterov momentum of Muon."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled decay of matrices and convolutions; norms, biases and embeddings have none."""
    clip: float = Field(1.0, gt=0)
    """Largest global norm of the gradient."""
    warmup_steps: int = Field(100, ge=0)
    """Steps of linear warm-up; in steps, as Adam's statistics need steps and not minutes."""
    decay: Literal["cosine", "wsd"] = "cosine"
    """cosine: down from the end of warm-up; wsd: constant, then down linearly in the last `decay_share`."""
    decay_share: float = Field(0.2, gt=0, le=1)
    """Share of progress in which wsd goes down."""
    floor: float = Field(0.02, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""


class BudgetSettings(Config):
    """When training ends: at `steps` or after `max_minutes`, whichever comes first."""

    steps: int = Field(10_000, ge=1)
    """Global steps."""
    max_minutes: float | None = Field(None, gt=0)
    """Wall-clock minutes of all attempts together, evaluation included; the learning rate ends its way within them."""


class EmaSettings(Config):
    """The moving average of the weights, which is what is evaluated and registered."""

    decay: float = Field(0.999, ge=0, lt=1)
    """Decay a step; at step s no more than (1 + s) / (10 + s), so that the start is forgotten."""


class CheckpointSettings(Config):
    """Where and how often the whole state is kept."""

    url: str
    """Root of all runs' checkpoints, any fsspec URL; a run writes below <url>/<run key>."""
    every_steps: int = Field(500, ge=1)
    """Steps between checkpoints: the most that a killed worker costs."""
    every_minutes: float | None = Field(None, gt=0)
    """A checkpoint is also written when the last one is this many minutes old; none: by steps alone."""
    keep: int = Field(2, ge=1)
    """Committed checkpoints that are kept, newest first."""
    keep_every: int | None = Field(None, ge=1)
    """Checkpoints of steps that this divides are kept for good, beside the newest; should be a multiple of
    every_steps. None: the newest alone."""
    max_failed: int = Field(3, ge=1)
    """Saves that may fail in a row (each after retries) before the run does: a store that is away for minutes does
    not end training, one that stays away must not let it go on unsaved."""


class GuardSettings(Config):
    """What happens when a step goes wrong: its loss or gradient is no number, or the loss jumps (docs/training.md).

    No part of the run key: it may be changed for a run in trouble. A run that had no bad step is not changed by it.
    """

    max_skips: int = Field(10, ge=1)
    """Bad steps in a row that are skipped; then the weights of an earlier checkpoint are taken and training goes on
    behind the data that it had seen since."""
    max_rollbacks: int = Field(3, ge=0)
    """Times in a run that this is done before the run fails; 0 fails at the first time."""
    max_dumps: int = Field(8, ge=0)
    """Bad steps of a run whose packs are stored below <run root>/faults for --replay; each takes some MB a worker."""
    spike_factor: float | None = Field(None, gt=0)
    """A loss this many deviations above the median of the last `spike_window` ones is a bad step too (a deviation is
    1.4826 times the median distance from the median, which is that of a normal law); none: only what is no number
    is. 6 is a choice that large runs make; lower ones refuse what is only hard."""
    spike_window: int = Field(128, ge=8)
    """Accepted steps that a loss is compared with; nothing is a spike before there are as many."""


class ProfileSettings(Config):
    """Which steps are profiled by torch.profiler."""

    start: int = Field(10, ge=1)
    """First step, from 0; the one before it warms the profiler up."""
    stop: int = Field(12, ge=1)
    """Last step; a trace takes some MB a step."""
    ranks: list[int] = Field(default=[0])
    """Workers that write one."""
    shapes: bool = False
    """Record the shapes of operands."""
    memory: bool = False
    """Record what is allocated."""

    @model_validator(mode="after")
    def _in_order(self) -> "ProfileSettings":
        if self.stop < self.start:
            raise ValueError(f"stop {self.stop} must not be below start {self.start}")
        return self


class WatchSettings(Config):
    """What is reported while training runs."""

    log_every: int = Field(20, ge=1)
    """Steps between metrics; each is a mean over these steps."""
    detail: Literal["full", "basic"] = "full"
    """full: also losses by time, norms by part of the network, FLOP/s, memory and the machine, and with the held-out
    loss its parts by task and calibration. basic: without, for those who would measure what that costs."""
    heldout_every: int = Field(250, ge=1)
    """Steps between held-out losses of the averaged weights; the best one's weights are registered."""
    sample_every: int = Field(500, ge=1)
    """Steps between sample grids and insertion traces; each takes some seconds of the budget."""
    prompts: list[str] = Field(default_factory=list)
    """Prompts of the sample grid, an image each; none: no samples and no length ratio."""
    captions: int = Field(4, ge=0)
    """Held-out images that are captioned beside the grid, with traces."""
    length_captions: int = Field(32, ge=0)
    """Held-out images whose captions tell the length ratio, those above among them; few say little."""
    sampler_steps: int = Field(16, ge=1)
    """Steps of the sampler for these samples."""
    profile: ProfileSettings | None = None
    """A trace of some steps, e.g. {start: 20, stop: 22}; it costs time in these steps only."""


class ComputeSettings(Config):
    """Where it runs."""

    workers: int = Field(2, ge=1)
    """Training processes; workers / tensor_parallel must divide data.lanes. Changing it does not change the run."""
    min_workers: int | None = Field(None, ge=1)
    """Fewest workers that the run goes on with when nodes are lost, at numbers that divide data.lanes; when nodes come
    back it grows again, up to `workers`. None: it waits for nodes until there is room for all workers."""
    replicas: int = Field(1, ge=1)
    """Copies of the model: groups of workers / replicas processes share one (HSDP). Take the nodes of a cluster, so
    that parameters are gathered within a node and gradients alone cross the network. Must divide compute.workers."""
    tensor_parallel: int = Field(1, ge=1)
    """Processes that share the arithmetic of a pack: heads and columns of each block are split over as many that
    follow one another, which read the same packs. For documents whose activations do not fit, or more GPUs than
    data.lanes; slower than as many packs at once, as activations cross the network four times a block: take GPUs of
    one node. Must divide workers / replicas and the network's heads, kv_heads and ffn."""
    threads: int = Field(1, ge=1)
    """CPU threads of a worker's arithmetic; workers * threads should not exceed the cores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of parameters and activations in the passes; sums, optimiser state and the average stay in fp32."""
    reshard_after_forward: bool = False
    """True frees gathered parameters between forward and backward: less memory, one more gather."""
    shard_min_mb: float = Field(16.0, ge=0)
    """Blocks smaller than this (MiB of fp32) are gathered together with the rest of the model, not one by one:
    on a small model seven exchanges a step cost more than the memory is worth."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What a block keeps for the backward pass: none: everything. selective: what its matrix products and its attention
    gave, the rest (norms, rotations, SwiGLU) is computed again, almost for nothing. full: its input alone; the block
    runs twice, a third more arithmetic. Gradients are the same, bit for bit."""
    compile: bool = False
    """torch.compile each block, for any length of pack; pays on GPUs after a minute of compilation. What selective
    would compute again, it computes again by itself."""
    stall_timeout_s: float = Field(600.0, gt=0)
    """Seconds within which a part of a step must end; after it every worker writes its stacks and ends, so that Ray
    replaces all. The first step, evaluations, samples and checkpoints may take four times as long."""
    max_failures: int = Field(2, ge=0)
    """Times that lost workers are replaced without a step that was committed in between, before the run fails."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs that Ray reserves for a worker."""


class RegistrySettings(Config):
    """What becomes of the best weights."""

    name: str | None = "oneflow-shapes"
    """Registered model; none: export only, no registration."""
    alias: str = "candidate"
    """Alias that the new version gets."""
    codec: str = "embedded"
    """Latent codec to ship: "embedded", a directory or a hub name; must be the one that encoded the corpus."""
    codec_subfolder: str | None = None
    """Where in it the codec lies, e.g. vae in the pipeline of SD3."""
    encoder: str = "embedded"
    """Understanding encoder to ship; must be the one whose features the corpus holds."""
    image_size: int = Field(64, ge=1)
    """Side of generated images in pixels."""
    sampler: dict[str, Any] = Field(default_factory=dict)
    """Defaults of the sampler that go with the model, e.g. {steps: 24, image_guidance: 2.0}."""


class TrackingSettings(Config):
    """Which MLflow run this is."""

    experiment: str = "oneflow"
    """Experiment in MLflow."""
    uri: str | None = None
    """Tracking server; none: MLFLOW_TRACKING_URI, and no tracking where that is not set."""
    parent_run: str | None = None
    """Run under which this one is nested, as a sweep's trials are."""
    patience_s: float = Field(60.0, ge=0)
    """Seconds for which the end of training waits for a server that is away; the last checkpoint keeps what it has not
    taken, and the same command delivers it later."""


class TrainConfig(Config):
    """One training run, from a corpus to a registered model."""

    name: str = "train"
    """Name of the run in MLflow."""
    seed: int = 0
    """Of the initial weights, the order of documents and every corruption."""
    model: ModelSettings = ModelSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    data: DataSettings
    optimiser: OptimiserSettings = OptimiserSettings()
    budget: BudgetSettings = BudgetSettings()
    ema: EmaSettings = EmaSettings()
    checkpoint: CheckpointSettings
    guard: GuardSettings = GuardSettings()
    watch: WatchSettings = WatchSettings()
    compute: ComputeSettings = ComputeSettings()
    registry: RegistrySettings = RegistrySettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _workers_can_be_dealt_out(self) -> "TrainConfig":
        check_layout(self.compute, self.data.lanes)
        return self

    @model_validator(mode="after")
    def _tables_are_there_in_time(self) -> "TrainConfig":
        every, ahead = self.objective.adaptive_every, self.data.read_ahead
        if self.objective.schedule == "adaptive" and every <= ahead:
            raise ValueError(f"objective.adaptive_every {every} must be above data.read_ahead {ahead}")
        return self
