# An image for `polymodal launch --on kubernetes` and for everything else that the command line does.
#   docker build --tag polymodal .                                  # for CPUs
#   docker build --tag polymodal --build-arg TORCH=cu130 .          # for NVIDIA GPUs: the wheels bring CUDA, the machine its driver
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# which build of torch: cpu, cu126, cu130 ... (uv's --torch-backend)
ARG TORCH=cpu
RUN pip install --no-cache-dir uv==0.13.9 && uv venv --python /usr/local/bin/python /opt/polymodal
ENV VIRTUAL_ENV=/opt/polymodal UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
WORKDIR /src
# what polymodal needs, in the versions that its tests ran with; without hashes and CUDA's packages, which are others for each build of torch
COPY pyproject.toml requirements.lock ./
RUN sed -E '/^ /d; /^(nvidia|cuda)-/d; s/ \\$//' requirements.lock > constraints.txt \
    && uv pip install --torch-backend ${TORCH} --constraint constraints.txt -r pyproject.toml \
    --extra s3 --extra gcs --extra parquet --extra tensorboard --extra wandb --extra prometheus --extra search --extra serve
COPY README.md LICENSE __init__.py __main__.py _version.py py.typed registry.py ./
COPY shared shared
COPY text text
COPY vision vision
COPY seq2seq seq2seq
COPY multimodal multimodal
COPY pipelines pipelines
RUN uv pip install --no-deps .

FROM python:${PYTHON}-slim
# torch.compile and Triton, which FlexAttention uses, compile at run time
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 polymodal
COPY --from=build /opt/polymodal /opt/polymodal
ENV PATH=/opt/polymodal/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# a number, by which Kubernetes sees that it is not root
USER 1000
WORKDIR /home/polymodal
ENTRYPOINT ["polymodal"]
