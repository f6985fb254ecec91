# Without a GPU: labels from boxes, conversion, tests, small trainings.
#   docker build -f docker/cpu.Dockerfile -t mwsis:cpu . && docker run --rm -it -v FOLDER:/data mwsis:cpu
FROM python:3.11.13-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends git libusb-1.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir "uv>=0.8,<1"
RUN useradd --create-home mwsis
USER mwsis
WORKDIR /home/mwsis/app
COPY --chown=mwsis . .
RUN uv sync --no-dev --extra viz
ENV MWSIS_CACHE=/data/cache
ENTRYPOINT ["uv", "run", "--no-sync"]
CMD ["tools/train.py", "--help"]
