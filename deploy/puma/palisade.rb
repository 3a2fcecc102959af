# frozen_string_literal: true

# One unix socket for each Puma worker, for Puma 5.6 to 8, without a gem.
#
# In config/puma.rb:
#
#     workers Integer(ENV.fetch("WEB_CONCURRENCY", 2))
#     instance_eval File.read("/etc/palisade/palisade.rb"), "/etc/palisade/palisade.rb"   # this file, wherever it is
#
# (Puma's own `load` does not do: called from a configuration file it is ignored without a word, and Puma would listen
# on 0.0.0.0:9292.)
#
# and in proxy.toml:
#
#     [upstream]
#     address = "unix:/run/shop/w*.sock"
#
# Why: on a shared socket the kernel decides which worker takes a connection, and a fast request can land behind a
# slow one while another worker is idle. With a socket each, Palisade sends to the worker that has a thread free.
#
# Remove every other `bind` and `port` line: a TCP port beside the sockets is a way around the proxy. With no bind
# left Puma would listen on port 9292 of every address; the binds below prevent that.
#
# Environment:
#   PALISADE_SOCKETS       folder of the sockets (default /run/palisade); must exist and belong to Puma's user
#   PALISADE_SOCKET_UMASK  0077 when Palisade runs as Puma's user (default), 0117 when it shares Puma's group.
#                          Without it Puma creates sockets with mode 0777: any local user could pass by the proxy.
#
# Known limits: signal TTOU leaves the highest socket without a worker (connects succeed and are never answered);
# TTIN adds a worker without a socket. Change the number of workers by a restart instead.

require "puma/plugin"
require "puma/server"

# On Ruby 3.3 a server that is told to stop can wait for ever in closing the pipe by which it was told, if the thread that a signal
# interrupts has written to it (puma/puma#3677): the process is then killed after 30 s or more. A thread of its own writes here.
unless defined?(::PALISADE_ORDER)
  ::PALISADE_ORDER = Module.new do
    define_method(:notify_safely) { |message| Thread.new { super(message) }.join }
    private :notify_safely
  end
  Puma::Server.prepend(::PALISADE_ORDER)
end

palisade_folder = ENV.fetch("PALISADE_SOCKETS", "/run/palisade")
palisade_umask = ENV.fetch("PALISADE_SOCKET_UMASK", "0077")
palisade_workers = Integer(@options[:workers] || ENV.fetch("WEB_CONCURRENCY", 0))

if palisade_workers < 2
  bind "unix://#{palisade_folder}/w0.sock?umask=#{palisade_umask}"
else
  palisade_workers.times { |index| bind "unix://#{palisade_folder}/w#{index}.sock?umask=#{palisade_umask}" }

  # The plugin runs once in the master before it forks; it only remembers where the listening sockets are kept.
  unless defined?(PALISADE_BINDER)
    PALISADE_BINDER = []
    palisade_plugin = Class.new(Puma::Plugin) { define_method(:start) { |launcher| PALISADE_BINDER.replace([launcher.binder]) } }
    Puma::Plugins.register "palisade_per_worker_socket", palisade_plugin
  end
  plugin "palisade_per_worker_socket"

  # Puma 7 renamed the hook. It runs in the freshly forked worker before it accepts: the worker keeps its own socket and
  # lets go of its siblings'. The master keeps them all, so a restarted worker finds its socket with the queue intact.
  palisade_hook = respond_to?(:before_worker_boot, true) ? :before_worker_boot : :on_worker_boot
  send(palisade_hook) do |index|
    PALISADE_BINDER.first.ios.select! do |io|
      address = io.local_address
      !address.unix? || address.unix_path.end_with?("/w#{index}.sock")
    end
  end
end
