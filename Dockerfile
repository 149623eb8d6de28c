# The demo page. As in:
#   docker build -t imagenette-zoo . && docker run --rm -p 7860:7860 imagenette-zoo
# Models of your own: docker run … -v "$PWD/runs:/home/zoo/runs" imagenette-zoo imagenette-zoo demo --host 0.0.0.0 runs/NAME
FROM python:3.12-slim
# Wheels of torch for CPUs; for CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"
COPY . /src
RUN pip install --no-cache-dir '/src[demo]' && rm -r /src
RUN useradd --create-home zoo
USER zoo
WORKDIR /home/zoo
EXPOSE 7860
CMD ["imagenette-zoo", "demo", "--host", "0.0.0.0", "--port", "7860"]
