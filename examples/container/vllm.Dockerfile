# vLLM with the wheel that `make wheel` made. From the root of the repository:
#   docker build -f examples/container/vllm.Dockerfile -t vllm-kvkeep:0.1.0 .
FROM vllm/vllm-openai:v0.32.0
COPY build/wheel/ /wheels/
RUN pip install --no-cache-dir --no-index --find-links /wheels kvkeep==0.1.0
