# The broker in a small image, run by a user without privileges.
#
#   docker build -t leveret .
#   docker run --rm -p 5672:5672 -v leveret:/var/lib/leveret leveret
#
# Clients outside the container are not on its loopback address, so guest is refused to them (as
# by RabbitMQ). For them, put a user and a password into a copy of config/leveret.toml, under
# [auth], and mount it:
#
#   docker run ... -v ./my.toml:/etc/leveret/leveret.toml:ro leveret

FROM rust:1-slim-bookworm AS build
# What scripts/setup installs for building.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libclang-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# RocksDB takes ten minutes to compile: in a layer of its own, which changes only with these files
# (and with empty programs, because cargo wants to see some).
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY conformance/Cargo.toml conformance/
RUN mkdir -p src conformance/src \
    && touch src/lib.rs src/main.rs conformance/src/main.rs \
    && cargo build --release --locked -p librocksdb-sys
COPY . .
RUN cargo build --release --locked -p leveret

# The same Debian release as above: the binary needs its C and C++ libraries, which are in it.
FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin leveret \
    && install -d -o leveret -g leveret -m 0750 /var/lib/leveret
COPY --from=build /src/target/release/leveret /usr/local/bin/leveret
COPY config/leveret.toml /etc/leveret/leveret.toml
# By number, so that an orchestrator can see that it is not root.
USER 10001
WORKDIR /var/lib/leveret
VOLUME /var/lib/leveret
EXPOSE 5672
STOPSIGNAL SIGTERM
ENTRYPOINT ["leveret"]
CMD ["serve", "--config", "/etc/leveret/leveret.toml", "--data-dir", "/var/lib/leveret", "--amqp-listen", "0.0.0.0:5672"]
