"""A job's tables: TorchTitan 0.2.2's fields under their names, and this project's; a sentence and a unit for each.

It is long because it is the one list of what a job can say. Fields left at None were not set by the user. Of
TorchTitan's tables only `[optimizer]`, `[lr_scheduler]` and `model.name` differ, which a test holds.
"""

# No `from __future__ import annotations`: TorchTitan's custom config modules are merged by `is_dataclass(field.type)`.
import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mosaic_photon.files import write_json


@dataclass
class Job:
    """The run as a whole, and where it writes."""

    config_file: str | None = None
    """The job config's path, as given to --config. Filled by the launch wrapper."""

    dump_folder: str = "./outputs"
    """Folder for all that the job writes."""

    description: str = "default job"
    """A title, shown at the start."""

    print_config: bool = False
    """Print the whole config at the start."""

    save_config_file: str | None = None
    """Save the whole config as JSON in this file, relative to dump_folder."""

    custom_config_module: str = ""
    """Importable module whose JobConfig dataclass adds tables and fields to a job's, or replaces some of them."""


@dataclass
class Profiling:
    """torch.profiler's traces, and memory snapshots of a GPU."""

    enable_profiling: bool = False
    """Record traces of some steps."""

    save_traces_folder: str = "profile_traces"
    """Folder for traces, relative to dump_folder."""

    profile_freq: int = 10
    """Steps from one recorded trace to the next."""

    profiler_active: int = 1
    """Steps that a trace records."""

    profiler_warmup: int = 3
    """Steps that the profiler runs along before it records."""

    enable_memory_snapshot: bool = False
    """Save snapshots of a GPU's memory, with the stack of each allocation."""

    save_memory_snapshot_folder: str = "memory_snapshot"
    """Folder for memory snapshots, relative to dump_folder."""


@dataclass
class Metrics:
    """What is logged, how often and where."""

    log_freq: int = 10
    """Steps from one report of loss, throughput and memory to the next; the first step is always reported."""

    enable_tensorboard: bool = False
    """Write metrics for TensorBoard."""

    disable_color_printing: bool = False
    """Print without colours."""

    save_tb_folder: str = "tb"
    """Folder for TensorBoard's files, relative to dump_folder."""

    save_for_all_ranks: bool = False
    """Write the metrics of every rank, not only of the one that knows the loss."""

    enable_wandb: bool = False
    """Send metrics to Weights & Biases."""


@dataclass
class Model:
    """Which model is trained."""

    name: str = "llama3_mosaic"
    """llama3_mosaic, mpt_mup_mosaic, or <TorchTitan language model>_mosaic."""

    flavor: str = "debugmodel"
    """Which of the model's named sizes."""

    hf_assets_path: str = "./tests/assets/tokenizer"
    """Folder with tokenizer.json, and with what else of a Hugging Face model is used, such as weights to begin from."""

    tokenizer_path: str | None = None
    """The old name of hf_assets_path, which it replaces if it is set."""

    converters: list[str] = field(default_factory=list)
    """TorchTitan's converters to apply to the model, in order, e.g. quantize.linear.float8."""

    print_after_conversion: bool = False
    """Print the model after its converters."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the flavor's model args to replace, by name, e.g. {n_layers = 2}."""


@dataclass
class Optimizer:
    """TorchTitan's optimizer table, widened to any optimizer by name; only what is set is passed on."""

    name: str = "AdamW"
    """Adam or AdamW (TorchTitan's), QHADOPT, ADOPT, or a name from llm-foundry's optimizer registry."""

    lr: float | None = None
    """Peak learning rate. None is TorchTitan's default, 8e-4."""

    beta1: float | None = None
    """Decay rate of the first moment."""

    beta2: float | None = None
    """Decay rate of the second moment."""

    eps: float | None = None
    """Added to, or lower bound of, the root of the second moment."""

    weight_decay: float | None = None
    """Weight decay coefficient."""

    v1: float | None = None
    """QHADOPT: weight of the momentum in the step, 1 is ADOPT."""

    decouple: bool | None = None
    """Decay the weights, not the gradient: QHADOPT by (lr / initial_lr) * weight_decay, ADOPT by lr * weight_decay."""

    implementation: Literal["for-loop", "foreach", "fused"] | None = None
    """TorchTitan's switch. None: fused for Adam and AdamW, foreach for QHADOPT and ADOPT."""

    early_step_in_backward: bool = False
    """TorchTitan's: step in backward. Adam and AdamW only, without gradient clipping."""

    no_decay: list[str] = field(default_factory=list)
    """Regular expressions, searched in parameter names; parameters that match get weight decay 0."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """The rest of the optimizer's constructor arguments."""


@dataclass
class LRScheduler:
    """TorchTitan's schedule, or, with `name`, any Composer, llm-foundry or mosaic-photon scheduler."""

    name: str | None = None
    """Name from llm-foundry's scheduler registry. None: TorchTitan's own schedule."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the named scheduler, e.g. {t_warmup = "100ba"}."""

    warmup_steps: int | None = None
    """TorchTitan's schedule: steps of linear warm-up. None is TorchTitan's default, 200."""

    total_steps: int | None = None
    """TorchTitan's schedule: its length in steps. None is training.steps."""

    decay_ratio: float | None = None
    """TorchTitan's schedule: share of the steps spent decaying. None: all after the warm-up."""

    decay_type: Literal["linear", "sqrt", "cosine"] | None = None
    """TorchTitan's schedule: shape of the decay. None is TorchTitan's default, linear."""

    min_lr_factor: float | None = None
    """TorchTitan's schedule: last learning rate as a share of the peak. None is TorchTitan's default, 0."""


@dataclass
class DataLoader:
    """torch's loader in TorchTitan's own data sets; the data config has those of Mosaic's streams."""

    num_workers: int = 0
    """Worker processes of each rank. Not read here: the data config's num_workers is."""

    persistent_workers: bool = False
    """Keep workers from one epoch to the next. Not read here."""

    pin_memory: bool = False
    """Copy batches to pinned memory. Not read here: the data config's pin_memory is."""

    prefetch_factor: int | None = None
    """Batches that each worker prepares ahead. Not read here."""


@dataclass
class Training:
    """The loop: how long, on how much, in which precision."""

    dataset: str = "c4_test"
    """TorchTitan's own data set. Not read here: the data config is."""

    dataset_path: str | None = None
    """Where TorchTitan's own data set is. Not read here."""

    local_batch_size: int = 8
    """Samples in a micro-batch of one data-parallel rank."""

    global_batch_size: int = -1
    """Samples in one optimizer step, over all ranks and micro-batches. -1: one micro-batch of each rank."""

    seq_len: int = 2048
    """Tokens of a sample that are predicted."""

    max_norm: float | int = 1.0
    """Largest norm of the whole gradient; a longer one is scaled down to it. inf clips nothing."""

    steps: int = 10000
    """Optimizer steps of the run."""

    enable_cpu_offload: bool = False
    """Keep parameters, gradients and optimizer states in the host's memory (FSDP on GPUs)."""

    dtype: Literal["bfloat16", "float32"] = "float32"
    """In which parameters, gradients and optimizer states are kept."""

    mixed_precision_param: Literal["bfloat16", "float32"] = "bfloat16"
    """In which layers compute: by FSDP, or by autocast in one process and DDP. No effect with TP or PP without FSDP."""

    mixed_precision_reduce: Literal["float32"] = "float32"
    """In which FSDP reduces gradients."""

    gc_freq: int = 50
    """Steps from one garbage collection of Python to the next."""

    gc_debug: bool = False
    """Collect garbage at every step and warn of reference cycles that hold GPU tensors."""

    disable_cuda_graphs: bool = False
    """TorchTitan 0.3 records each micro-batch's passes as a CUDA graph where it can; true: never."""

    dataloader: DataLoader = field(default_factory=DataLoader)


@dataclass
class Parallelism:
    """How the model and its batches are laid out on the job's processes; the degrees multiply to their number."""

    data_parallel_replicate_degree: int = 1
    """Replicas of the weights: DDP, or with sharding HSDP."""

    data_parallel_shard_degree: int = -1
    """Ranks that weights, gradients and optimizer states are sharded over (FSDP2). -1: all that are left."""

    fsdp_reshard_after_forward: Literal["default", "always", "never"] = "default"
    """Free gathered weights after the forward pass. default: always, but not with pipeline parallelism."""

    tensor_parallel_degree: int = 1
    """Ranks that each layer's matrices, and the sequence between them, are split over."""

    disable_loss_parallel: bool = False
    """With tensor parallelism, gather the logits before the loss."""

    enable_async_tensor_parallel: bool = False
    """Overlap tensor parallelism's communication with its matrix products; needs compile."""

    pipeline_parallel_degree: int = 1
    """Ranks that the layers are shared out to as pipeline stages."""

    module_fqns_per_model_part: list[list[str]] | None = None
    """The modules of each stage, by name. None: as many layers in each as the fields below say."""

    pipeline_parallel_first_stage_less_layers: int = 1
    """Layers that the first stage has less, for the embedding."""

    pipeline_parallel_last_stage_less_layers: int = 1
    """Layers that the last stage has less, for the head."""

    pipeline_parallel_layers_per_stage: int | None = None
    """Layers in a stage. None: one stage a rank, or two where the schedule interleaves."""

    pipeline_parallel_schedule: str = "1F1B"
    """torch's pipeline schedule: 1F1B, GPipe, Interleaved1F1B, LoopedBFS, InterleavedZeroBubble, ZBVZeroBubble,
    DualPipeV."""

    pipeline_parallel_schedule_csv: str | None = ""
    """File with a schedule written out, in torch's CSV. Empty: the schedule by its name."""

    pipeline_parallel_microbatch_size: int = 1
    """Samples in what a stage works on at a time; local_batch_size is a multiple of it."""

    pipeline_parallel_expert_parallel_overlap: bool = True
    """With DualPipeV and experts, overlap both parallelisms' communication."""

    context_parallel_degree: int = 1
    """Ranks that a sequence's attention is split over."""

    context_parallel_load_balancer: str | None = "headtail"
    """How positions are dealt so that all ranks attend equally much: headtail (SDPA), ptrr (flex attention) or None."""

    context_parallel_rotate_method: Literal["allgather", "alltoall"] = "allgather"
    """How keys and values reach the other ranks of a sequence."""

    expert_parallel_degree: int = 1
    """Ranks that a layer's experts are shared out to."""

    expert_tensor_parallel_degree: int = 1
    """Ranks that each expert's matrices are split over: 1 or tensor_parallel_degree."""

    expert_parallel_comm_backend: Literal["standard", "deepep"] = "standard"
    """How tokens reach their experts: by torch's all-to-all, or by DeepEP's kernels."""


@dataclass
class Checkpoint:
    """What is saved, what is loaded, and when."""

    enable: bool = False
    """Save checkpoints, and go on from the newest one at the start."""

    enable_ft_dataloader_checkpoints: bool = True
    """With TorchFT, save the position in the data too, so that no replica trains twice on the same."""

    folder: str = "checkpoint"
    """Folder for checkpoints, relative to dump_folder, or a store's URL (s3://, gs://, az://)."""

    interval: int = 500
    """Steps from one checkpoint to the next."""

    initial_load_path: str | None = None
    """Checkpoint (a URL too), or Hugging Face folder, to begin from where the job has no checkpoint of its own."""

    initial_load_model_only: bool = True
    """Of initial_load_path load the weights alone, and begin at step 0."""

    initial_load_in_hf: bool = False
    """initial_load_path, or hf_assets_path without one, holds safetensors under Hugging Face's names."""

    initial_load_in_hf_quantized: bool = False
    """Those safetensors are quantized, and are dequantized when they are loaded."""

    last_save_model_only: bool = True
    """The last checkpoint holds the weights alone: a run cannot go on from it."""

    last_save_in_hf: bool = False
    """Write the last checkpoint as safetensors under Hugging Face's names; needs last_save_model_only."""

    export_dtype: Literal["float16", "bfloat16", "float32"] = "float32"
    """In which the last checkpoint's weights are written, if it holds them alone."""

    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "disabled"
    """Train on while a checkpoint is written: from a thread, or from a process that shares pinned memory."""

    keep_latest_k: int = 10
    """Checkpoints that are kept, the newest ones; at least 2. 0 keeps all."""

    load_step: int = -1
    """The step whose checkpoint to go on from. -1: the newest."""

    exclude_from_loading: list[str] = field(default_factory=list)
    """States that are not loaded: optimizer, lr_scheduler, dataloader, train_state."""

    enable_first_step_checkpoint: bool = False
    """Save after the first step too, to see that saving works."""

    create_seed_checkpoint: bool = False
    """Save the initial weights as step 0 and end; one process."""

    load_only: bool = False
    """Load, and save nothing."""


@dataclass
class ActivationCheckpoint:
    """Which activations are computed again in the backward pass instead of kept."""

    mode: Literal["selective", "full", "memory_budget", "none"] = "selective"
    """selective: some; full: all within a layer; memory_budget: the compiler's choice; none: keep all."""

    selective_ac_option: str = "2"
    """With selective: every how many layers one is checkpointed, or op for a choice of operations in all of them."""

    per_op_sac_force_recompute_mm_shapes_by_fqns: list[str] = field(default_factory=lambda: ["moe.router.gate"])
    """With op: linear layers, by name; matrix products of the shape of their weights are always computed again."""

    early_stop: bool = False
    """Stop computing again as soon as all that is needed is there."""

    memory_budget: float = 0.5
    """With memory_budget: share of the activations' memory, from 0, as full does, to 1, the compiler's default."""

    visualize_memory_budget_pareto: bool = False
    """With memory_budget: draw memory against time for budgets from 0 to 1, in memory_budget_pareto of dump_folder."""

    preserve_rng_state: bool = True
    """Draw the same random numbers, of dropout say, in both passes."""

    determinism_check: str = "default"
    """How the second pass is compared with the first: default, by shape, type and device, or none."""

    debug: bool = False
    """Report operations where the passes differ; slow."""


@dataclass
class Compile:
    """torch.compile."""

    enable: bool = False
    """Compile the components below."""

    components: list[str] = field(default_factory=lambda: ["model", "loss"])
    """What is compiled: model, layer by layer, and loss."""

    backend: str = "inductor"
    """torch.compile's backend."""


@dataclass
class Float8Linear:
    """The converter quantize.linear.float8; needs torchao."""

    enable_fsdp_float8_all_gather: bool = False
    """Let FSDP gather weights in float8; for the tensorwise recipe."""

    precompute_float8_dynamic_scale_for_fsdp: bool = False
    """Compute all weights' scales at once after each step; for the tensorwise recipe."""

    recipe_name: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] | None = None
    """torchao's recipe: a scale a tensor, a scale a row, or this with the weights' gradients in high precision."""

    filter_fqns: list[str] = field(default_factory=list)
    """Layers that stay as they are, by name."""

    emulate: bool = False
    """Compute without float8 hardware; for tests, and not compiled."""


@dataclass
class Float8GroupedMM:
    """The converter quantize.grouped_mm.float8; a prototype of torchao's."""

    fqns: list[str] | str = field(default_factory=list)
    """Experts' layers that are converted, by name."""


@dataclass
class MXLinear:
    """The converter quantize.linear.mx: microscaling formats of Blackwell GPUs; needs torchao."""

    mxfp8_dim1_cast_kernel_choice: Literal["triton", "cuda", "torch"] = "triton"
    """The kernel that casts along columns."""

    recipe_name: str = "mxfp8_cublas"
    """torchao's recipe."""

    filter_fqns: list[str] = field(default_factory=lambda: ["output"])
    """Layers that stay as they are, by name."""


@dataclass
class MXGroupedMM:
    """The converter quantize.grouped_mm.mx; a prototype of torchao's."""

    recipe_name: Literal["mxfp8"] = "mxfp8"
    """torchao's recipe."""

    fqns: list[str] | str = field(default_factory=list)
    """Experts' layers that are converted, by name."""


@dataclass
class QuantizedLinear:
    """Quantized linear layers."""

    float8: Float8Linear = field(default_factory=Float8Linear)
    mx: MXLinear = field(default_factory=MXLinear)


@dataclass
class QuantizedGroupedMM:
    """Quantized matrix products of experts."""

    float8: Float8GroupedMM = field(default_factory=Float8GroupedMM)
    mx: MXGroupedMM = field(default_factory=MXGroupedMM)


@dataclass
class Quantize:
    """Settings of the converters that model.converters names."""

    linear: QuantizedLinear = field(default_factory=QuantizedLinear)
    grouped_mm: QuantizedGroupedMM = field(default_factory=QuantizedGroupedMM)


@dataclass
class Comm:
    """Collectives: how long they may take, and what is recorded of them."""

    init_timeout_seconds: int = 300
    """How long a collective may take up to the end of the first step. Seconds."""

    train_timeout_seconds: int = 100
    """How long a collective may take from then on. Seconds."""

    trace_buf_size: int = 20000
    """Collectives that NCCL's flight recorder remembers. 0: none."""

    save_traces_folder: str = "comm_traces"
    """Folder for the flight recorder's files, relative to dump_folder."""

    save_traces_file_prefix: str = "rank_"
    """What their names begin with; the rank follows."""

    mode: Literal["default", "fake_backend", "local_tensor"] = "default"
    """default: real ones; fake_backend: none, to try a config; local_tensor: all ranks in one process, one by one."""


@dataclass
class MemoryEstimation:
    """TorchTitan's estimate of FSDP's memory, a program of its own."""

    enable: bool = False
    """Estimate. Not read here."""

    disable_fake_mode: bool = False
    """Estimate with real tensors. Not read here."""


@dataclass
class FaultTolerance:
    """TorchFT: replicas that come and go; experimental."""

    enable: bool = False
    """Train with TorchFT; replication is then its own, of group_size replicas."""

    process_group: str = "gloo"
    """Backend between replicas: gloo or nccl."""

    process_group_timeout_ms: int = 10000
    """How long an operation between replicas may take. Milliseconds."""

    replica_id: int = 0
    """This run's number among the replicas."""

    group_size: int = 0
    """Replicas, which the data is shared out to."""

    min_replica_size: int = 1
    """Replicas that a step needs at least."""

    semi_sync_method: str | None = None
    """Synchronize every some steps: local_sgd or diloco. None: every step."""


@dataclass
class Experimental:
    """What TorchTitan may change or drop."""

    custom_import: str = ""
    """Module to import at the start, e.g. for what it registers."""

    custom_args_module: str = ""
    """The old name of job.custom_config_module; refused."""


@dataclass
class Validation:
    """The loss on held-out data, between steps."""

    enable: bool = False
    """Validate, on the data config's eval loader."""

    dataset: str = "c4_validation"
    """TorchTitan's own data set. Not read here: the data config is."""

    dataset_path: str | None = None
    """Where TorchTitan's own data set is. Not read here."""

    local_batch_size: int = 8
    """Samples in a batch of one data-parallel rank."""

    seq_len: int = 2048
    """Tokens of a sample that are predicted."""

    freq: int = 10
    """Steps from one validation to the next; the first step is followed by one too."""

    steps: int = -1
    """Batches of each rank in one validation. -1: all of the data."""

    dataloader: DataLoader = field(default_factory=DataLoader)


@dataclass
class Debug:
    """Runs that can be compared."""

    seed: int | None = None
    """Seed of initial weights and dropout. None: another one in each run."""

    deterministic: bool = False
    """Use deterministic kernels, where there are any; slower."""

    deterministic_warn_only: bool = False
    """Warn where there is none, instead of failing."""

    moe_force_load_balance: bool = False
    """Send equally many tokens to all experts, in turns, whatever the router says."""


@dataclass
class MuP:
    """Maximal update parametrization (width) and CompleteP (depth); multipliers are derived from the base sizes."""

    enabled: bool = False
    """Scale initial weights, learning rates and multipliers with width and depth."""

    base_width: int | None = None
    """d_model of the model that the hyper-parameters were tuned on: m_N = d_model / base_width."""

    base_depth: int | None = None
    """n_layers of that model: m_L = n_layers / base_depth. None: m_L = 1."""

    depth_alpha: float = 1.0
    """Depth exponent in [0, 1]: 0 scales width only, 1 is CompleteP."""

    attention_scale: bool = False
    """Scale attention scores by 1/d_head instead of 1/sqrt(d_head)."""

    input_multiplier: float = 1.0
    """Multiplies the token embedding."""

    output_multiplier: float = 1.0
    """Multiplies the logits, beside 1/m_N."""


@dataclass
class Mosaic:
    """Where the data comes from and how strictly it is checked."""

    config: str = ""
    """The data config's path, as given to --mosaic-config. Filled by the launch wrapper."""

    dataloader: dict[str, Any] = field(default_factory=dict)
    """llm-foundry's train loader config, verbatim, read from the data config."""

    eval_dataloaders: dict[str, dict[str, Any]] = field(default_factory=dict)
    """llm-foundry's eval loader configs by label, verbatim, read from the data config; "" is a set without a label."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    """The run's stages, `mosaic_stages` of the data config."""

    allow_data_change: bool = False
    """Resume although the data config differs from the checkpoint's in what fixes the order of samples."""

    allow_partial_load: bool = False
    """Load of a checkpoint what fits the job; what it lacks stays as it was drawn, what the job lacks is left out."""

    allow_model_change: bool = False
    """Train a checkpoint's weights although the job's model computes something else with them: other heads, positions,
    norms, caps or multipliers. What differs is listed."""

    nonfinite: Literal["stop", "skip", "ignore"] = "stop"
    """What to do at a step whose loss or gradient norm is not finite: stop, and save nothing of it; skip its optimizer
    step, up to ten in a row; or go on as TorchTitan does."""

    console: Literal["auto", "line", "titan"] = "auto"
    """What a job prints: a line a report, with warnings and what comes next; or TorchTitan's own lines. auto: lines in
    a terminal, TorchTitan's elsewhere."""

    loss_per_stream: bool = False
    """Report of each stream its mean loss since the last report, and how many tokens and epochs of it have been read:
    `loss/STREAM`, `tokens/STREAM`, `epochs/STREAM`."""

    skip_batches: list[str] = field(default_factory=list)
    """Global batches of the data's plan that are passed over, as "1200-1210" or "1500"; counted from 1, so that without
    skips step s takes batch s. Steps and schedules go on with the batches after them."""

    separate_documents: bool = False
    """Keep attention within the documents of concatenated text, which the data config's `eos_token_id` or
    `bos_token_id` tells apart. False: as the model's own settings say, by default across their ends."""

    adopt_cache: bool = False
    """Caches that Streaming or another program filled become this project's: what is in them may be removed."""

    node_folder: str = ""
    """Folder on this node's disk for what can be made or fetched again: caches of streams without `local`, orders,
    indexes, unpacked shards. Empty: `mosaic-photon-UID` in the temporary directory."""

    download_patience_seconds: float | None = None
    """How long a rank waits for a remote that does not answer. None: 300, or where there are several ranks 0.8 of
    comm.train_timeout_seconds, as the others then wait for this one, if that is less."""

    verify_cache: bool = False
    """At start, hash every shard file already in the cache instead of comparing sizes only."""


FROM_DATA = ("config", "dataloader", "eval_dataloaders", "stages")
"""Fields of `[mosaic]` that the data config fills, and a job config or a flag may not."""


@dataclass
class MosaicJobConfig:
    """A job: TorchTitan's tables and ours."""

    job: Job = field(default_factory=Job)
    profiling: Profiling = field(default_factory=Profiling)
    metrics: Metrics = field(default_factory=Metrics)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lr_scheduler: LRScheduler = field(default_factory=LRScheduler)
    training: Training = field(default_factory=Training)
    parallelism: Parallelism = field(default_factory=Parallelism)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    activation_checkpoint: ActivationCheckpoint = field(default_factory=ActivationCheckpoint)
    compile: Compile = field(default_factory=Compile)
    quantize: Quantize = field(default_factory=Quantize)
    comm: Comm = field(default_factory=Comm)
    memory_estimation: MemoryEstimation = field(default_factory=MemoryEstimation)
    fault_tolerance: FaultTolerance = field(default_factory=FaultTolerance)
    experimental: Experimental = field(default_factory=Experimental)
    validation: Validation = field(default_factory=Validation)
    debug: Debug = field(default_factory=Debug)
    mup: MuP = field(default_factory=MuP)
    mosaic: Mosaic = field(default_factory=Mosaic)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Composer callbacks: registry name or module.path:Class -> arguments."""

    def to_dict(self) -> dict[str, Any]:
        """All tables as plain dicts; TorchTitan logs them."""
        return asdict(self)

    def maybe_log(self) -> None:
        """Print and save the config as `[job]` says. TorchTitan's trainer calls it when the process group is there."""
        if self.job.print_config:
            logging.getLogger().info(
                f"Running with configs: {json.dumps(self.to_dict(), indent=2, ensure_ascii=False)}"
            )
        if self.job.save_config_file is None:
            return
        path = Path(self.job.dump_folder, self.job.save_config_file)
        if os.environ.get("RANK", "0") == "0":
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self.to_dict())
        logging.getLogger().info(f"Saved job configs to {path}")
