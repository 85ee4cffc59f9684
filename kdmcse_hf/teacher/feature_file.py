"""Arrays of features in other projects' files, read a few rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kdmcse_hf.teacher.shard import CacheError

HDF5_ENDINGS = (".hdf5", ".h5")
_DTYPES = ("float16", "float32", "float64")
_SAFETENSORS_NAMES = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}
_CHUNK = 16384


class FeatureFile:
    """A (rows, D) array of floats in `.npy`, `.safetensors` or `.hdf5`, of which only what is asked for is in memory.

    Args:
        path: the file.
        tensor: its name in a `.safetensors` file; in `.hdf5` it is `features`, as MCSE has it.
        expected_rows: how many there must be.

    Raises:
        FileNotFoundError, CacheError: no such file, or it holds something else.
    """

    def __init__(self, path: str | Path, tensor: str, expected_rows: int) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist: expected features (.safetensors, .hdf5 or .npy).")
        try:
            self._array, shape, dtype = self._open(tensor)
        except (SafetensorError, TypeError, ValueError, OSError, KeyError) as error:
            raise CacheError(f"{self.path} cannot be read as features: {error}") from error
        if len(shape) != 2 or shape[0] != expected_rows:
            raise CacheError(
                f"{self.path} holds features of shape {shape}: expected {expected_rows:,} rows of one width."
            )
        if dtype not in _DTYPES:
            raise CacheError(f"{self.path} holds {dtype} features: expected float16, float32 or float64. Convert them.")

    def _open(self, tensor: str) -> tuple[Any, tuple[int, ...], str]:
        """What can be sliced, its shape and dtype."""
        if self.path.suffix == ".npy":
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            return array, array.shape, array.dtype.name
        if self.path.suffix in HDF5_ENDINGS:
            dataset = _open_hdf5(self.path)
            return dataset, dataset.shape or (), dataset.dtype.name
        file = safe_open(self.path, "np").__enter__()
        if tensor not in file.keys():
            raise ValueError(f"it has no tensor {tensor!r}, only {', '.join(map(repr, file.keys()))}")
        tensor_slice = file.get_slice(tensor)
        dtype = tensor_slice.get_dtype()
        return tensor_slice, tuple(tensor_slice.get_shape()), _SAFETENSORS_NAMES.get(dtype, dtype)

    def chunks(self, rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        """The given rows, in rising order, in portions; float64 becomes float32."""
        for start in range(0, len(rows), _CHUNK):
            wanted = rows[start : start + _CHUNK]
            first = int(wanted[0])
            array = np.asarray(self._array[first : int(wanted[-1]) + 1])[wanted - first]
            yield array.astype(np.float32) if array.dtype == np.float64 else array


def _open_hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise CacheError(f"{path} needs the package h5py: pip install 'kdmcse_hf[import]'.") from error
    file = h5py.File(path, "r")
    if "features" not in file:
        raise ValueError(f"it has no dataset 'features', only {', '.join(map(repr, file))}")
    if not isinstance(file["features"], h5py.Dataset):
        raise ValueError("its 'features' is a group, expected a dataset")
    return file["features"]
