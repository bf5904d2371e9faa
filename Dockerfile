# docker build -t zo_fl .                              docker run -v "$PWD/runs:/work/runs" zo_fl
# docker build -t zo_fl:cuda --build-arg EXTRAS=cuda . docker run --gpus all -v ... zo_fl:cuda
FROM python:3.12-slim
ARG EXTRAS=""
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"
WORKDIR /work
ENTRYPOINT ["zo-fl"]
CMD ["--config=quickstart"]
