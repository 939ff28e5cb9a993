# mf without PyTorch: docs/how-to/containers.md says how to run it.
FROM python:3.12-slim AS build
WORKDIR /build
COPY requirements-light.txt ./
RUN python -m venv /opt/mf \
    && /opt/mf/bin/pip install --no-cache-dir --requirement requirements-light.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY weights weights
RUN /opt/mf/bin/pip install --no-cache-dir --no-deps . \
    && /opt/mf/bin/pip uninstall --yes pip

FROM python:3.12-slim
ENV PATH=/opt/mf/bin:$PATH \
    MF_CACHE_DIR=/cache \
    PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/mf /opt/mf
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin mf \
    && install --directory --owner=mf /cache /pictures
USER 10001
VOLUME /cache
WORKDIR /pictures
HEALTHCHECK --interval=5m --timeout=1m --start-period=10s CMD ["mf", "doctor"]
ENTRYPOINT ["mf"]
CMD ["--help"]
