# With NVIDIA GPUs (driver for CUDA 12.6 or newer): torch and spconv bring their own CUDA libraries.
#   docker build -f docker/cuda.Dockerfile -t mwsis:cuda . && docker run --rm -it --gpus all --ipc=host -v FOLDER:/data mwsis:cuda
FROM nvidia/cuda:12.6.3-base-ubuntu24.04
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git libusb-1.0-0 python3 python3-dev python3-venv g++ pipx \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home mwsis
USER mwsis
RUN pipx install "uv>=0.8,<1"
ENV PATH=/home/mwsis/.local/bin:$PATH
WORKDIR /home/mwsis/app
COPY --chown=mwsis . .
RUN uv sync --no-dev --extra viz
ENV MWSIS_CACHE=/data/cache
ENTRYPOINT ["uv", "run", "--no-sync"]
CMD ["tools/train.py", "--help"]
