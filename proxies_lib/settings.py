"""Process settings that would change a run's numbers while its key stays the same.

JAX, XLA and the libraries below them read environment variables, and `jax.config` can be set by
whoever imports jax. None of that is part of a run. So every setting that changes numbers has one
value here, the one our stored numbers were made with: `pin_environment` drops variables and flags
that are not known to be harmless, `pin_jax` sets the options of `jax.config` where programs are
traced and run. What is left to the machine, `unpinned` says for the provenance.
"""

import fnmatch
import os
import sys

from proxies_lib.config import UserError, refuse

# Options of jax.config by the value that our numbers were made with: JAX's defaults, written down
# because they may change. An option that the installed version lacks is skipped. A test fails
# where that version has an option that is neither here nor in HARMLESS.
PINNED = {
    # random numbers: initial weights
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_custom_prng": False,
    "jax_high_dynamic_range_gumbel": False,
    "jax_legacy_prng_key": "allow",
    "jax_random_seed_offset": 0,
    "jax_threefry_gpu_kernel_lowering": False,
    "jax_threefry_partitionable": True,
    # types, precision, and how a function of jax.numpy or jax.nn is computed
    "jax_accurate_erf_inv": False,
    "jax_allow_f16_reductions": True,
    "jax_bcoo_cusparse_lowering": False,
    "jax_default_matmul_precision": None,
    "jax_enable_x64": False,
    "jax_explicit_x64_dtypes": "warn",
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_ragged_dot_use_gpu_pallas_triton_lowering": False,
    "jax_ragged_dot_use_ragged_dot_instruction": True,
    "jax_softmax_custom_jvp": False,
    "jax_use_hlo_logistic_lowering": None,
    "jax_use_magma": "auto",
    # tracing and differentiation: another graph rounds otherwise
    "check_vma": False,
    "eager_constant_folding": False,
    "jax_auto_pcast": True,
    "jax_custom_jvp3": False,
    "jax_custom_vjp3": False,
    "jax_disable_jit": False,
    "jax_embedded_constants_max_bytes": 32,
    "jax_no_execution": False,
    "jax_no_tracing": False,
    "jax_refs_to_pins": False,
    "jax_remat3": False,
    "jax_remat_barrier_no_cotangents": False,
    "jax_remove_size_one_mesh_axis_from_type": False,
    "jax_scan3": False,
    "jax_use_direct_linearize": True,
    "jax_use_emit_pipeline_primitive": False,
    "jax_use_rgv3": True,
    "jax_use_simplified_jaxpr_constants": False,
    # the compiler
    "jax_compilation_cache_expect_pgle": False,
    "jax_compiler_enable_remat_pass": True,
    "jax_disable_most_optimizations": False,
    "jax_enable_pgle": False,
    "jax_exec_time_optimization_effort": 0.0,
    "jax_memory_fitting_effort": 0.0,
    "jax_memory_fitting_level": "O2",
    "jax_mosaic_allow_hlo": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_pgle_aggregation_percentile": 90,
    "jax_pgle_profiling_runs": 3,
    "jax_use_shardy_partitioner": True,
    "jax_xla_profile_version": 0,
    # debugging: it stops a run at a loss that is not finite, which is a result here
    "jax_check_static_indices": False,
    "jax_check_tracer_leaks": False,
    "jax_debug_infs": False,
    "jax_debug_key_reuse": False,
    "jax_debug_nans": False,
    "jax_enable_checks": False,
    "jax_error_checking_behavior_divide": "ignore",
    "jax_error_checking_behavior_nan": "ignore",
    "jax_error_checking_behavior_oob": "ignore",
    "jax_experimental_unsafe_xla_runtime_errors": False,
    # devices: JAX_PLATFORMS chooses them, and provenance names what it chose
    "jax_backend_target": "",
    "jax_cpu_collectives_implementation": "gloo",
    "jax_default_device": None,
    "jax_mock_gpu_topology": "",
    "jax_pjrt_client_create_options": None,
    "jax_platform_name": "",
    "jax_sort_devices_by_process_index": True,
    "jax_xla_backend": "",
    "mock_num_gpu_processes": 0,
}

# Options, as patterns, that may be what the user likes: which devices, caches, connections, logs
# and tracebacks, checks that raise or pass, formats of export, and kernels of a kind that no
# program here has (Pallas, Mosaic).
HARMLESS = tuple(
    """
    jax_platforms jax_*_visible_devices jax_num_cpu_devices
    jax_cpu_enable_async_dispatch jax_cpu_get_*_timeout_minutes

    jax_enable_compilation_cache jax_compilation_cache_* jax_persistent_cache_*
    jax_raise_persistent_cache_errors jax_remove_custom_partitioning_ptr_from_cache_key
    jax_share_binary_between_hosts*

    jax_distributed_* jax_mtls_* jax_cross_host_* jax_force_dcn_cross_host_transfers
    jax_check_proxy_envs jax_enable_preemption_service jax_enable_recoverability

    jax_logging_level jax_log_* jax_debug_log_modules jax_explain_cache_misses
    jax_compiler_detailed_logging_min_ops jax_dump_ir_* jax_include_* jax_captured_constants_*
    jax_hlo_source_* jax_source_url_schema jax_pprint_use_color
    jax_traceback_* jax_tracer_error_* jax_send_traceback_to_runtime

    jax_array_garbage_collection_guard jax_transfer_guard* jax_thread_guard
    jax_debug_leaked_clients_on_clear_backends jax_disable_bwd_checks
    jax_disable_vmap_shmap_error jax_disallow_mesh_context_manager jax_mutable_array_checks
    jax_raise_on_ppermute_sort_diff jax_use_cpp_shard_args

    jax_export_* jax_serialization_version jax2tf_* jax_pallas_* jax_mosaic_*
    """.split()
)

# How processes of jax.distributed find each other: read by JAX, but no options of jax.config.
CONNECTIONS = (
    "JAX_COORDINATOR_*",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
    "JAX_PARTITION_INDEX",
    "JAX_SLICE_INDEX",
)

# Flags of XLA that stay. A number of CPU devices is recorded with the others (`unpinned`).
XLA_FLAGS = ("--xla_force_host_platform_device_count", "--xla_dump_*", "--xla_gpu_cuda_data_dir")

# Variables of the libraries below JAX that choose algorithms, precision, instructions or threads.
LIBRARIES = (
    "XLA_*",
    "TF_XLA_FLAGS",
    "TF_*CUDNN*",
    "FLAX_*",
    "ONEDNN_*",
    "DNNL_*",
    "CUBLAS*",
    "CUDNN_*",
    "NVIDIA_TF32_OVERRIDE",
    "NPROC",
    "PJRT_NPROC",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
)

# Variables that an accelerator may need to work at all, and that may change how sums are split.
RECORDED = (
    "LIBTPU_INIT_ARGS",
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_*",
    "NCCL_*",
    "MIOPEN_*",
    "ROCBLAS_*",
    "HIPBLASLT_*",
)

# What such families also hold: versions that container images state, logs, and where files are.
INERT = ("*_VERSION", "*LOG*", "*VERBOSE*", "*DEBUG*", "*_PATH", "*_DIR")

# Of a process whose JAX computes on one CPU thread: what it must find as it starts, and all that
# `use_one_thread` sets.
ONE_THREAD_AT_START = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}

ONE_THREAD = ONE_THREAD_AT_START | {
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

_too_late: list[str] = []  # what was dropped after JAX had read it

_one_thread = False


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def is_harmless(option: str) -> bool:
    """Whether an option of jax.config changes no number, so that it may be what the user likes."""
    return option not in PINNED and _matches(option, HARMLESS)


def pin_environment():
    """Drop variables and flags of XLA that could change numbers; one line on stderr names them.

    It is called as the package is imported: before JAX reads them, and only the first process has
    something to say, since its children inherit what is left.
    """
    dropped = []
    for name in sorted(os.environ):
        if name == "XLA_FLAGS":
            dropped += _pin_xla_flags()
        elif not _stays(name):
            dropped.append(f"{name}={os.environ.pop(name)}")
    if not dropped:
        return
    listed = ", ".join(repr(item) if " " in item else item for item in map(_short, dropped))
    print(f"proxies: ignored, as it could change a run's numbers: {listed}", file=sys.stderr)
    if _jax_has_started():
        _too_late.extend(item for item in dropped if not item.startswith("JAX_"))


def _stays(name: str) -> bool:
    if name.startswith("JAX_"):
        return is_harmless(name.lower()) or _matches(name, CONNECTIONS)
    return not _matches(name, LIBRARIES) or _matches(name, RECORDED) or _matches(name, INERT)


def _pin_xla_flags() -> list[str]:
    """Drop flags of XLA_FLAGS, and return them. A file of flags, which it may name, goes, too."""
    flags = os.environ.pop("XLA_FLAGS").split()
    kept = [flag for flag in flags if _matches(flag.partition("=")[0], XLA_FLAGS)]
    if kept:
        os.environ["XLA_FLAGS"] = " ".join(kept)
    return [f"XLA_FLAGS={flag}" for flag in flags if flag not in kept]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:99]}…"


def _jax_has_started() -> bool:
    """Whether JAX has opened its devices in this process: from then on XLA reads no flags."""
    if "jax" not in sys.modules:
        return False
    try:
        from jax._src import xla_bridge

        return xla_bridge.backends_are_initialized()
    except (ImportError, AttributeError):  # a JAX that keeps it elsewhere: assume the worst
        return True


def use_one_thread():
    """Compute on one CPU thread in this process, which must not have used JAX yet."""
    global _one_thread
    os.environ.update(ONE_THREAD)
    _one_thread = True


def _pin_environment_again():
    """A variable may have been set since the package was imported, before JAX reads it."""
    if not _one_thread:
        pin_environment()


def pin_jax():
    """Set every option of jax.config that changes numbers.

    Raises UserError where a context, such as jax.enable_x64, overrules the option.
    """
    import jax

    _pin_environment_again()
    for name, value in PINNED.items():
        if name in jax.config.values:
            jax.config.update(name, value)
    found = jax.config.values
    for name in sorted(PINNED.keys() & found.keys()):
        value = getattr(found[name], "name", found[name])  # of an enum
        if str(value).lower() != str(PINNED[name]).lower():
            refuse(name, value, f"must be {PINNED[name]!r} where a run trains; leave its context")


def platform_of_jax() -> str:
    """The kind of device JAX computes on. Raises UserError where JAX_PLATFORMS names none that is
    here."""
    import jax

    _pin_environment_again()
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that one was found
        said = first_line(error).partition(" (set JAX_PLATFORMS")[0]
        why = said if isinstance(error, RuntimeError) else "there are none"
        if asked := jax.config.values["jax_platforms"]:
            allowed = f"must name devices that jax finds here, or be unset ({why})"
            refuse("JAX_PLATFORMS", asked, allowed)
        raise UserError(f"jax finds no device to compute on ({why})") from None


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, else its type."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def threads() -> int:
    """The cores that this process may use; JAX has as many threads on a CPU."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def unpinned() -> str:
    """What may change rounding in this process and is not pinned, as NAME=value joined by "; ".

    It is "" in a worker process on one CPU core, unless a variable of `RECORDED` is set.
    """
    import jax

    kept = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if _matches(name, RECORDED)]
    kept = [item for item in kept if not _matches(item.partition("=")[0], INERT)]
    if jax.device_count() > 1:
        kept.append(f"devices={jax.device_count()}")
    if platform_of_jax() == "cpu" and not _one_thread:
        kept.append(f"threads={threads()}")
    return "; ".join([*_too_late, *kept])
