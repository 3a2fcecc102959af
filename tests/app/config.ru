# frozen_string_literal: true

# The application behind the end-to-end tests: it says what arrived, and writes down every request that reached Ruby.
#
# APP_LOG: a file that gets one line when a request begins (`B`) and one when it ends (`E`):
#   B <monotonic nanoseconds> <pid> <X-Test-Id or -> <method> <target>
# Tests prove by it that a request ran exactly once, that a hidden one never ran, and how many ran at the same time.

require "digest"
require "json"
require "socket"

LOG = File.open(ENV.fetch("APP_LOG", File::NULL), File::WRONLY | File::APPEND | File::CREAT, 0o600)

module App
  module_function

  def note(mark, env)
    target = env["QUERY_STRING"].to_s.empty? ? env["PATH_INFO"] : "#{env["PATH_INFO"]}?#{env["QUERY_STRING"]}"
    id = env.fetch("HTTP_X_TEST_ID", "-")
    LOG.syswrite("#{mark} #{Process.clock_gettime(Process::CLOCK_MONOTONIC, :nanosecond)} #{Process.pid} #{id} #{env["REQUEST_METHOD"]} #{target}\n")
  end

  def call(env)
    note("B", env)
    path = env["PATH_INFO"]
    query = Hash[env["QUERY_STRING"].to_s.split("&").map { |pair| pair.split("=", 2) }.select { |pair| pair.size == 2 }]
    status, headers, body = answer(env, path, query)
    note("E", env)
    [status, headers, body]
  end

  def answer(env, path, query)
    case path
    when "/", "/up" then text("ok\n")
    when "/env" then json(env.select { |_, value| value.is_a?(String) || value.is_a?(Integer) })
    when "/echo" then json(digest(env))
    when "/mirror" then mirror(env)
    when "/count" then text("#{Process.pid}\n")
    when "/lines" then [200, { "Content-Type" => "text/plain" }, %w[one two three].map { |word| "#{word}\n" }]
    when %r{\A/bytes/(\d+)\z} then bytes(Integer($1, 10))
    when %r{\A/sleep/(\d+)\z} then sleep(Integer($1, 10) / 1000.0) && text("slept #{$1} in #{Process.pid}\n")
    when %r{\A/status/(\d{3})\z} then status(Integer($1, 10))
    when %r{\A/headers/(\d+)\z} then text("ok\n", "X-Big" => "h" * Integer($1, 10))
    when "/cookies" then text("ok\n", "Set-Cookie" => "a=1; path=/\nb=2; path=/")
    when "/leaky" then text("ok\n", "X-Runtime" => "0.1", "X-Powered-By" => "Ruby", "Server" => "puma 5.6.5", "X-Sendfile" => "/srv/secret")
    when "/chunked" then [200, { "Content-Type" => "text/plain" }, chunks(Integer(query.fetch("parts", "3"), 10), Integer(query.fetch("every", "0"), 10))]
    when "/sse" then [200, { "Content-Type" => "text/event-stream", "Cache-Control" => "no-cache" }, events(Integer(query.fetch("events", "3"), 10), Integer(query.fetch("every", "1000"), 10))]
    when "/hijack/full" then full_hijack(env)
    when "/hijack/partial" then [200, { "Content-Type" => "text/plain", "rack.hijack" => method(:partial_hijack) }, []]
    when "/cable" then cable(env)
    when "/hints" then hints(env)
    when "/short" then short(env)
    when "/trace" then [500, { "Content-Type" => "text/plain" }, [["RuntimeError: as asked", *caller].join("\n\t")]]
    when "/secured" then text("ok\n", "Strict-Transport-Security" => "max-age=5", "X-Content-Type-Options" => "own", "X-Frame-Options" => "ALLOW-FROM x", "Referrer-Policy" => "no-referrer")
    when "/raise" then raise "as asked"
    when "/crash" then Process.kill(:KILL, Process.pid)
    else [404, { "Content-Type" => "text/plain" }, ["not found\n"]]
    end
  end

  def text(words, extra = {})
    [200, { "Content-Type" => "text/plain", "Content-Length" => words.bytesize.to_s }.merge(extra), [words]]
  end

  def json(value)
    document = JSON.generate(value.transform_values { |item| item.is_a?(String) ? item.dup.force_encoding("UTF-8").scrub("?") : item })
    [200, { "Content-Type" => "application/json", "Content-Length" => document.bytesize.to_s }, [document]]
  end

  def status(code)
    return [code, {}, []] if code == 204 || code == 304
    [code, { "Content-Type" => "text/plain", "Content-Length" => "7" }, ["status\n"]]
  end

  # Where the body lies (memory or file), how long it is and its checksum, read in pieces.
  def digest(env)
    sum = Digest::SHA256.new
    length = 0
    while (piece = env["rack.input"].read(65_536))
      sum << piece
      length += piece.bytesize
    end
    { "length" => length, "sha256" => sum.hexdigest, "method" => env["REQUEST_METHOD"],
      "content_length" => env["CONTENT_LENGTH"].to_s, "transfer_encoding" => env["HTTP_TRANSFER_ENCODING"].to_s }
  end

  def mirror(env)
    body = env["rack.input"].read
    [200, { "Content-Type" => "application/octet-stream", "Content-Length" => body.bytesize.to_s }, [body]]
  end

  def bytes(count)
    piece = "x" * 65_536
    whole, rest = count.divmod(piece.bytesize)
    body = Enumerator.new do |out|
      whole.times { out << piece }
      out << piece[0, rest] if rest.positive?
    end
    [200, { "Content-Type" => "application/octet-stream", "Content-Length" => count.to_s }, body]
  end

  def chunks(parts, every)
    Enumerator.new do |out|
      parts.times do |number|
        sleep(every / 1000.0) if number.positive? && every.positive?
        out << "part #{number}\n"
      end
    end
  end

  def events(count, every)
    Enumerator.new do |out|
      count.times do |number|
        sleep(every / 1000.0) if number.positive?
        out << "data: #{number}\n\n"
      end
    end
  end

  def hints(env)
    env["rack.early_hints"]&.call("Link" => "</app.css>; rel=preload; as=style")
    text("hinted\n")
  end

  def full_hijack(env)
    io = env["rack.hijack"].call
    io.write("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhijacked\n")
    io.close
    [200, {}, []]
  end

  def partial_hijack(io)
    io.write("first ")
    io.write("last\n")
  ensure
    io.close
  end

  # Promises more than it sends.
  def short(env)
    io = env["rack.hijack"].call
    io.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
    io.close
    [200, {}, []]
  end

  # RFC 6455: the handshake, then every text or binary frame comes back; a close frame is answered and ends it.
  def cable(env)
    key = env["HTTP_SEC_WEBSOCKET_KEY"]
    return [400, { "Content-Type" => "text/plain" }, ["no key\n"]] unless key && env["HTTP_UPGRADE"].to_s.casecmp?("websocket")

    accept = [Digest::SHA1.digest("#{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")].pack("m0")
    io = env["rack.hijack"].call
    io.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: #{accept}\r\n\r\n")
    Thread.new { echo_frames(io) }
    [-1, {}, []]
  end

  def echo_frames(io)
    loop do
      head = io.read(2) or break
      opcode = head.getbyte(0) & 0x0f
      length = head.getbyte(1) & 0x7f
      length = io.read(2).unpack1("n") if length == 126
      length = io.read(8).unpack1("Q>") if length == 127
      mask = io.read(4).bytes
      payload = io.read(length).bytes.each_with_index.map { |byte, index| byte ^ mask[index % 4] }.pack("C*")
      prefix = length < 126 ? [length].pack("C") : [126, length].pack("Cn")
      io.write([0x80 | opcode].pack("C") + prefix + payload)
      break if opcode == 8
    end
  rescue SystemCallError, IOError, NoMethodError
    nil
  ensure
    io.close
  end
end

run App
