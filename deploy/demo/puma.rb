# frozen_string_literal: true

# Puma of `make demo`: two workers with five threads, a unix socket for each worker, no port.
workers 2
threads 5, 5
environment "production"
lines = File.expand_path("../puma/palisade.rb", __dir__)
instance_eval File.read(lines), lines
