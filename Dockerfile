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
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p leveret

# The same Debian release as above: the binary needs its C library.
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
