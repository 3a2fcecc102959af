# frozen_string_literal: true

# Puma as the end-to-end tests start it. The number of workers, threads and the place to listen come from the environment.
workers Integer(ENV.fetch("APP_WORKERS"))
threads Integer(ENV.fetch("APP_THREADS")), Integer(ENV.fetch("APP_THREADS"))
environment "production"
early_hints true if ENV["APP_EARLY_HINTS"]
worker_timeout 60
# A worker of Puma 6.6.0 on Ruby 3.3.8 sometimes does not end when it is told to, until Puma kills it: all its requests are
# done, but its server thread waits for good in IO#close of the pipe by which the signal handler woke it. What has been sent
# to its socket waits that long, 30 s by default.
worker_shutdown_timeout 5

if ENV["APP_PORT"]
  bind "tcp://127.0.0.1:#{ENV.fetch("APP_PORT")}"
else
  lines = File.expand_path("../../deploy/puma/palisade.rb", __dir__)
  instance_eval File.read(lines), lines
end
