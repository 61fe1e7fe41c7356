# The training image: docker build -t rethink_tf .
#   one machine      mkdir -p runs   (else Docker makes it, as root; --user: who may write there)
#                    docker run --rm --init --gpus=all --user="$(id -u):$(id -g)" --env=HOME=/tmp \
#                        -v "$PWD/data:/home/trainer/data" -v "$PWD/runs:/home/trainer/runs" \
#                        rethink_tf --gin_file=gin_configs/scratch_6x.gin
#   without GPUs     docker build --build-arg TENSORFLOW=tensorflow ...      (5 GB smaller)
#   TPU              docker build --build-arg TENSORFLOW=tensorflow-tpu ...
# Other commands: --entrypoint=python rethink_tf -m rethink_tf.evaluate ...
FROM python:3.11.13-slim-bookworm AS build
ARG TENSORFLOW=tensorflow[and-cuda]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# Dependencies first: their layer stays cached while the code changes.
COPY setup.py pyproject.toml constraints.txt ./
COPY rethink_tf/__init__.py rethink_tf/
RUN mkdir gin_configs && pip install -c constraints.txt . && \
    case "$TENSORFLOW" in \
      tensorflow-tpu) pip uninstall --yes tensorflow && pip install --no-deps tensorflow-tpu==2.20.0 && \
        pip install -c constraints.txt libtpu ;; \
      *) pip install -c constraints.txt "$TENSORFLOW" ;; \
    esac
COPY . .
RUN pip install --no-deps --force-reinstall .

FROM python:3.11.13-slim-bookworm
RUN useradd --create-home --uid 1000 trainer
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH MPLBACKEND=Agg TF_CPP_MIN_LOG_LEVEL=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER trainer
WORKDIR /home/trainer
ENTRYPOINT ["python", "-m", "rethink_tf.train"]
