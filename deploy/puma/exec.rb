# frozen_string_literal: true

# What `palisade exec` has every Ruby under it read first (by RUBYOPT), for Puma 5.6 to 8, without a gem: Puma listens on
# Palisade's private sockets, one for each worker, and nowhere else, however it was started (`puma`, `bin/rails server`)
# and whatever its configuration, its command line or PORT say. Everything else of its configuration stays as it is.
module PalisadeExec
  FOLDER = __dir__

  # Around Puma::Configuration: replaces the addresses of command line and file once both have been read.
  module Sockets
    def load(*)
      result = super
      options = @_options || @options # Puma 7 renamed it.
      workers = options[:workers]
      [options.user_options, options.file_options].each do |layer|
        %i[binds control_url control_auth_token].each { |key| layer.delete(key) }
      end
      options.file_options[:workers] = workers
      lines = File.join(FOLDER, "palisade.rb")
      @file_dsl.instance_eval(File.read(lines), lines)
      # In a folder that only this user can enter, as whom anybody could also send Puma signals.
      @file_dsl.activate_control_app("unix://#{FOLDER}/control.sock", { no_token: true })
      result
    end
  end

  # Around Puma::Binder: what a `#\ ` line of config.ru or a later hook adds is not listened on either.
  module Nowhere
    def parse(binds, *rest)
      super(binds.select { |bind| bind.start_with?("unix://#{FOLDER}/") }, *rest)
    end
  end

  WRAPPED = { "Puma::Configuration" => Sockets, "Puma::Binder" => Nowhere }

  # Puma is loaded later, by Bundler or not at all: this waits for the end of its classes, and then costs nothing more.
  TRACE = TracePoint.new(:end) do |point|
    wrapper = WRAPPED[point.self.name]
    if wrapper && !point.self.ancestors.include?(wrapper)
      point.self.prepend(wrapper)
      TRACE.disable if WRAPPED.all? { |name, around| Object.const_defined?(name) && Object.const_get(name).ancestors.include?(around) }
    end
  end
  TRACE.enable
end
