"""Quantizing a model folder: planned from the files' headers, done file by file, shown under its name when complete.

All is written into `OUT.partial` beside OUT, by one run at a time. A journal there lists the finished files, so that a
run that was interrupted goes on where it stopped; at the end the folder is renamed, so that OUT is either complete or
not there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bnb_core._version import __version__
from bnb_core.functional.fourbit import DEFAULT_4BIT_BLOCKSIZE

from .files import DTYPES, CheckpointError, ShardReader, ShardWriter, TensorInfo, load_json
from .lock import locked
from .report import Report, WeightReport
from .selection import CONV1D_MODEL_TYPES, Selection, select
from .weights import FLOATS, Layout, Settings, Weight, format_of

__all__ = ["Job", "plan", "quantize_checkpoint"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
REPORT = "quantization_report.json"
JOURNAL = ".bnb_core_journal.json"
# Other forms of the weights, and folders' indexes of them: not copied.
_WEIGHT_FILES = re.compile(r"\.(?:safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf|onnx|ot|npz)(?:\.index\.json)?$")
_BIGGEST_COPY = 100 * 2**20

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Job:
    """A quantization that can be run; made by `plan`.

    shards: file → its tensors. config, index: contents of the JSON files (index None for a single file).
    notes: sentences for the user. force: an OUT that an earlier run made is replaced.
    """

    source: Path
    out: Path
    settings: Settings
    shards: Mapping[str, Mapping[str, TensorInfo]]
    selection: Selection
    config: Mapping[str, Any]
    index: Mapping[str, Any] | None
    notes: Sequence[str]
    force: bool

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, which `progress` counts up to."""
        return sum(info.nbytes for tensors in self.shards.values() for info in tensors.values())

    def run(self, progress: Progress | None = None, *, device: torch.device | str = "cpu") -> Report:
        """Does it, or the rest of it.

        progress: called with the name of a tensor and its bytes when it is done.
        device: where the quantization kernels run.

        Raises CheckpointError; OSError where the disk refuses. OUT is not touched before all is written.
        """
        return _Run(self, progress or (lambda name, nbytes: None), torch.device(device)).run()


def quantize_checkpoint(
    model_dir: str | Path,
    out: str | Path,
    *,
    to: str = "nf4",
    double_quant: bool = False,
    blocksize: int = DEFAULT_4BIT_BLOCKSIZE,
    skip: Sequence[str] = (),
    force: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Report:
    """Quantizes the linear layers of a model in safetensors files into a checkpoint that transformers loads.

    model_dir: holds config.json and model.safetensors, or its shards and their index.
    out: the new folder. to: nf4, fp4 or int8. double_quant: quantizes the scales of nf4 and fp4 too.
    skip: regular expressions for names of modules to leave as they are, besides embeddings, output heads and routers.
    force: an `out` that an earlier run made is replaced.

    Memory holds pieces of one tensor at a time. Raises CheckpointError with a sentence for what is wrong with the input
    or the output's place.
    """
    if isinstance(skip, str):
        raise CheckpointError(f"skip is the string {skip!r}, expected a list of regular expressions, as [{skip!r}]")
    settings = Settings(to, double_quant, blocksize, tuple(skip))
    return plan(model_dir, out, settings, force=force).run(progress, device=device)


# -- planning --------------------------------------------------------------------------------------------------------


def plan(model_dir: str | Path, out: str | Path, settings: Settings, *, force: bool = False) -> Job:
    """Reads the headers, chooses the weights and checks all that can be checked before the work.

    Raises CheckpointError.
    """
    source, out = Path(model_dir), Path(out)
    if not source.is_dir():
        raise CheckpointError(f"{source} is not a folder")
    _check_place(source, out, force)
    files, index = _weight_files(source)
    config = load_json(source / CONFIG)
    _check_not_quantized(source, config)
    shards: dict[str, Mapping[str, TensorInfo]] = {}
    for file in files:
        with ShardReader(source / file) as reader:
            shards[file] = reader.tensors
    _check_index(index, shards)
    infos = {name: info for tensors in shards.values() for name, info in tensors.items()}
    try:
        selection = select({name: info.shape for name, info in infos.items()}, config, settings.skip)
    except re.error as error:
        raise CheckpointError(f"--skip {error.pattern!r} is no regular expression: {error}") from None
    _check_selection(source, infos, selection)
    notes = [*_notes(config, infos, selection, settings), *_left_files(source, files)]
    job = Job(source, out, settings, shards, selection, config, index, notes, force)
    _check_room(job)
    return job


def _check_place(source: Path, out: Path, force: bool) -> None:
    inside, here = source.resolve(), out.resolve()
    if here == inside or inside in here.parents or here in inside.parents:
        raise CheckpointError(f"the output {out} and the model {source} must not lie within each other")
    if not out.parent.is_dir():
        raise CheckpointError(f"the folder {out.parent} for the output does not exist")
    old = _old(out)
    if old.exists() and (why_not := _why_not_ours(old)):
        raise CheckpointError(f"{old} is in the way and {why_not}: remove it, or choose another name")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise CheckpointError(f"{out} exists already; choose another name, or --force to replace it")
    why_not = _why_not_ours(out)
    if why_not:
        raise CheckpointError(f"{out} exists and {why_not}: --force replaces only what bnb-core quantize wrote")


def _why_not_ours(folder: Path) -> str | None:
    """None where a finished run wrote the folder and it may be removed, else what speaks against it."""
    if not folder.is_dir():
        return "is no folder"
    if not (folder / REPORT).is_file():
        return f"holds no {REPORT}"
    try:
        config = load_json(folder / CONFIG)
    except CheckpointError:
        return f"holds no readable {CONFIG}"
    if config.get("quantization_config") is None:
        return f"its {CONFIG} has no quantization_config"
    inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return f"holds the folder {inner[0]}" if inner else None


def _check_not_quantized(source: Path, config: Mapping[str, Any]) -> None:
    entry = config.get("quantization_config")
    if entry is not None:
        method = entry.get("quant_method", "an unknown method") if isinstance(entry, dict) else "an unknown method"
        raise CheckpointError(f"{source} is quantized already, by {method}: start from the original model")


def _weight_files(source: Path) -> tuple[list[str], dict[str, Any] | None]:
    if (source / SINGLE).is_file():
        return [SINGLE], None
    if not (source / INDEX).is_file():
        raise CheckpointError(_no_weights(source))
    index = load_json(source / INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{source / INDEX} has no weight_map")
    files = sorted(set(map(str, weight_map.values())))
    for file in files:
        if Path(file).name != file:
            raise CheckpointError(f"{source / INDEX} names a file outside its folder: {file}")
    return files, index


def _no_weights(source: Path) -> str:
    found = sorted({path.suffix for path in source.iterdir() if _WEIGHT_FILES.search(path.name)})
    if not found:
        return f"{source} holds no {SINGLE} and no {INDEX}"
    advice = "convert it first: load it with transformers and save_pretrained() writes safetensors"
    if found == [".safetensors"]:
        advice = "name it so, or add the index"
    return f"{source} holds no {SINGLE} and no {INDEX}, but files of {', '.join(found)}: {advice}"


def _check_index(index: Mapping[str, Any] | None, shards: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    for name, file in (index or {}).get("weight_map", {}).items():
        if name not in shards[file]:
            raise CheckpointError(f"{INDEX} places {name} in {file}, which does not hold it")


def _check_selection(source: Path, infos: Mapping[str, TensorInfo], selection: Selection) -> None:
    for name in selection.quantized:
        if infos[name].dtype == "F64":
            raise CheckpointError(f"{name} has dtype F64, which is not supported: convert the model to F32 first")
        if infos[name].dtype not in FLOATS:
            raise CheckpointError(
                f"{name} has dtype {infos[name].dtype}, expected {', '.join(FLOATS)}: is the model quantized already?"
            )
    if not selection.quantized:
        why = ", ".join(f"{reason} ({n})" for reason, n in Counter(selection.skipped.values()).most_common())
        raise CheckpointError(f"{source} has no weight to quantize; left as they are: {why or 'no 2-D weights'}")


def _notes(
    config: Mapping[str, Any], infos: Mapping[str, TensorInfo], selection: Selection, settings: Settings
) -> list[str]:
    notes = []
    for pattern in settings.skip:
        if not any(re.search(pattern, name.removesuffix(".weight")) for name in selection.skipped):
            notes.append(f"--skip {pattern} matched no weight")
    if selection.left:
        notes.append(
            f"{selection.left} tensors that hold all experts of a layer stay as they are: there is no layer for them"
        )
    experts = sum(reason == "expert" for reason in selection.skipped.values())
    if experts:
        notes.append(f"{experts} weights of experts stay as they are: transformers merges them when it loads the model")
    if any(selection.quantized.values()):
        notes.append(f"model type {config['model_type']} stores its projections transposed; they are turned first")
    elif not isinstance(config.get("model_type"), str):
        notes.append(f"{CONFIG} has no model_type: no weight is taken for transposed (as in {CONV1D_MODEL_TYPES[2]})")
    if settings.to != "int8" and settings.blocksize == 16:
        notes.append("block size 16 is read by bnb_core, not by bitsandbytes")
    return notes


def _left_files(source: Path, files: Sequence[str]) -> list[str]:
    left = [
        path.name + "/" * path.is_dir()
        for path in sorted(source.iterdir())
        if path.name not in files and not _is_copied(path) and not path.name.startswith(".") and path.name != INDEX
    ]
    return [f"not copied: {', '.join(left)}"] if left else []


def _is_copied(path: Path) -> bool:
    return path.is_file() and not _WEIGHT_FILES.search(path.name) and path.stat().st_size <= _BIGGEST_COPY


def _check_room(job: Job) -> None:
    need = sum(
        sum(info.nbytes for info in tensors.values() if info.name not in job.selection.quantized)
        + sum(_stored_bytes(layout) for layout in _layouts(job, tensors).values())
        for tensors in job.shards.values()
    )
    free = shutil.disk_usage(job.out.parent).free
    if need > free + _size_of(_partial(job.out)):
        raise CheckpointError(f"the output needs about {need:,} bytes, {job.out.parent} has {free:,} free")


def _layouts(job: Job, tensors: Mapping[str, TensorInfo]) -> dict[str, Layout]:
    """Name → layout of the weights that are quantized."""
    form, found = format_of(job.settings), {}
    for name, info in tensors.items():
        transposed = job.selection.quantized.get(name)
        if transposed is not None:
            rows, columns = info.shape
            found[name] = form.layout((columns, rows) if transposed else (rows, columns), DTYPES[info.dtype])
    return found


def _stored_bytes(layout: Layout) -> int:
    return sum(_nbytes(*planned) for planned in layout.tensors.values()) + sum(layout.blobs.values())


def _nbytes(dtype: str, shape: Sequence[int]) -> int:
    return torch.empty(shape, dtype=DTYPES[dtype], device="meta").nbytes


def _partial(out: Path) -> Path:
    here = out.resolve()
    return here.with_name(here.name + ".partial")


def _old(out: Path) -> Path:
    """Where an OUT that is replaced waits until the new one has its name."""
    partial = _partial(out)
    return partial.with_name(partial.name + ".old")


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


# -- running ---------------------------------------------------------------------------------------------------------


class _Run:
    """One run of a job; what is finished stands in the journal."""

    def __init__(self, job: Job, progress: Progress, device: torch.device) -> None:
        self.job = job
        self.progress = progress
        self.device = device
        self.form = format_of(job.settings)
        self.folder = _partial(job.out)
        self.journal: dict[str, Any] = {"inputs": self._inputs(), "files": {}}

    def run(self) -> Report:
        _check_place(self.job.source, self.job.out, self.job.force)
        self.folder.mkdir(exist_ok=True)
        with locked(self.folder):
            return self._run_alone()

    def _run_alone(self) -> Report:
        resumed = self._open_folder()
        for file in self.job.shards:
            if file in resumed:
                for info in self.job.shards[file].values():
                    self.progress(info.name, info.nbytes)
            else:
                self.journal["files"][file] = self._shard(file)
                self._write_json(JOURNAL, self.journal)
        report = self._report(resumed)
        self._finish(report)
        return report

    def _inputs(self) -> dict[str, Any]:
        """What decides the output: another value of it, and an interrupted run starts anew."""
        stats = {file: (self.job.source / file).stat() for file in (CONFIG, *self.job.shards)}
        return {
            "version": __version__,
            "settings": {**asdict(self.job.settings), "skip": list(self.job.settings.skip)},
            "files": {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()},
        }

    def _open_folder(self) -> list[str]:
        """Takes over what an interrupted run left in the folder, or empties it; returns the files that are finished."""
        journal = self._read_journal()
        if journal["inputs"] == self.journal["inputs"]:
            self.journal["files"] = {f: e for f, e in journal["files"].items() if self._is_whole(f, e)}
        else:
            for path in self.folder.iterdir():
                path.unlink()
        self._write_json(JOURNAL, self.journal)
        return list(self.journal["files"])

    def _read_journal(self) -> dict[str, Any]:
        """The journal of an interrupted run; one of no inputs where nothing can be taken over.

        A folder that is complete but for its name has no journal any more.
        """
        if not (self.folder / JOURNAL).exists():
            others = {path.name for path in self.folder.iterdir()} - {f"{JOURNAL}.new"}
            if others and _why_not_ours(self.folder):
                raise CheckpointError(
                    f"{self.folder} exists and is not of an interrupted run: remove it, or choose another name"
                )
            return {"inputs": None}
        try:
            journal = load_json(self.folder / JOURNAL)
        except CheckpointError:  # it is damaged
            return {"inputs": None}
        return journal if journal.keys() >= {"inputs", "files"} else {"inputs": None}

    def _is_whole(self, file: str, entry: Mapping[str, Any]) -> bool:
        path = self.folder / file
        return path.is_file() and path.stat().st_size == entry["bytes"]

    def _shard(self, file: str) -> dict[str, Any]:
        """Writes one file; returns its entry of the journal."""
        tensors = self.job.shards[file]
        layouts = _layouts(self.job, tensors)
        planned: dict[str, tuple[str, Sequence[int], int]] = {}
        blobs: dict[str, int] = {}
        for name, info in tensors.items():
            if name not in layouts:
                planned[name] = (info.dtype, info.shape, info.nbytes)
                continue
            module = name.removesuffix("weight")
            for key, (dtype, shape) in layouts[name].tensors.items():
                planned[module + key] = (dtype, shape, _nbytes(dtype, shape))
            blobs |= {module + key: length for key, length in layouts[name].blobs.items()}
        path = self.folder / file
        weights = []
        with ShardReader(self.job.source / file) as reader, ShardWriter(path, planned, blobs) as writer:
            for info in tensors.values():
                if info.name in layouts:
                    weights.append(self._weight(reader, writer, info, blobs))
                else:
                    at = 0
                    for piece in reader.pieces(info):
                        writer.write(info.name, piece, at)
                        at += len(piece)
                self.progress(info.name, info.nbytes)
        return {
            "bytes": path.stat().st_size,
            "tensors": [*planned, *blobs],
            "data_bytes": writer.data_bytes,
            "weights": [asdict(weight) for weight in weights],
        }

    def _weight(
        self, reader: ShardReader, writer: ShardWriter, info: TensorInfo, blobs: Mapping[str, int]
    ) -> WeightReport:
        weight = Weight(reader, info, self.job.selection.quantized[info.name])
        made = self.form.quantize(weight, self.device)
        module = info.name.removesuffix("weight")
        for key, tensor in made.tensors.items():
            if module + key in blobs:
                writer.write_blob(module + key, bytes(tensor.tolist()))
            else:
                writer.write(module + key, tensor)
        return WeightReport(
            info.name,
            weight.shape,
            info.dtype,
            info.nbytes,
            sum(tensor.nbytes for tensor in made.tensors.values()),
            made.relative_error,
            made.mean_abs_error,
        )

    def _report(self, resumed: Sequence[str]) -> Report:
        job, files = self.job, self.journal["files"]
        entries = [entry for file in job.shards for entry in files[file]["weights"]]
        weights = [WeightReport(**{**entry, "shape": tuple(entry["shape"])}) for entry in entries]
        broken = [weight.name for weight in weights if weight.relative_error is None]
        notes = list(job.notes)
        if broken:
            notes.append(
                f"not finite (NaN or infinity among the values), and so after dequantizing: {', '.join(broken)}"
            )
        return Report(
            out=job.out,
            settings=job.settings,
            weights=weights,
            kept=dict(job.selection.skipped),
            bytes_before=sum((job.source / file).stat().st_size for file in job.shards),
            bytes_after=sum(files[file]["bytes"] for file in job.shards),
            resumed=resumed,
            notes=notes,
        )

    def _finish(self, report: Report) -> None:
        """Adds the small files, then gives the folder its name."""
        job, files = self.job, self.journal["files"]
        for path in job.source.iterdir():
            if _is_copied(path) and path.name not in (CONFIG, INDEX, JOURNAL):
                shutil.copyfile(path, self.folder / path.name)
        self._write_json(CONFIG, _quantized_config(job))
        if job.index is not None:
            metadata = {**job.index.get("metadata", {}), "total_size": sum(e["data_bytes"] for e in files.values())}
            weight_map = {name: file for file in job.shards for name in files[file]["tensors"]}
            self._write_json(INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})
        _write(self.folder / REPORT, report.to_json())
        _check_place(job.source, job.out, job.force)  # hours may have gone by
        (self.folder / JOURNAL).unlink()
        _sync(self.folder)
        _put_in_place(self.folder, job.out.resolve())

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        _write(self.folder / name, json.dumps(value, indent=2) + "\n")


def _quantized_config(job: Job) -> dict[str, Any]:
    """config.json with the entry by which transformers knows a quantized checkpoint."""
    four_bit = job.settings.to != "int8"
    infos = [tensors[name] for tensors in job.shards.values() for name in tensors if name in job.selection.quantized]
    dtype = str(DTYPES[Counter(info.dtype for info in infos).most_common(1)[0][0]]).removeprefix("torch.")
    config = dict(job.config)
    if not config.keys() & {"dtype", "torch_dtype"}:
        config["torch_dtype"] = dtype  # else the loader would guess it from the first tensor, which may be a scale
    config["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": four_bit,
        "load_in_8bit": not four_bit,
        "bnb_4bit_quant_type": job.settings.to if four_bit else "fp4",
        "bnb_4bit_use_double_quant": job.settings.double_quant,
        "bnb_4bit_compute_dtype": dtype if four_bit else "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": list(job.selection.skip_modules),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
    }
    return config


def _write(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    aside = path.with_name(path.name + ".new")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _sync(folder: Path) -> None:
    """Waits until the disk has a folder's entries, where the system can tell."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put_in_place(folder: Path, out: Path) -> None:
    """Renames `folder` to `out`; an old checkpoint there is removed only after the new one has its name."""
    old = _old(out)
    if out.exists():
        if old.exists():
            shutil.rmtree(old)
        out.rename(old)
    folder.rename(out)
    _sync(out.parent)
    if old.exists():
        shutil.rmtree(old)
