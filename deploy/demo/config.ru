# frozen_string_literal: true

# The application of `make demo`: a page that shows what arrived, and an upload that is counted.

require "digest"

PAGE = lambda do |env|
  shown = env.select { |key, value| value.is_a?(String) && (key.start_with?("HTTP_") || %w[REQUEST_METHOD PATH_INFO rack.url_scheme].include?(key)) }
  "Puma's worker #{Process.pid} got this request, and this is all it knows of you:\n\n#{shown.map { |key, value| "  #{key} = #{value}\n" }.join}"
end

UPLOAD = lambda do |env|
  sum = Digest::SHA256.new
  length = 0
  while (piece = env["rack.input"].read(65_536))
    sum << piece
    length += piece.bytesize
  end
  "Puma got #{length} bytes with Content-Length #{env["CONTENT_LENGTH"]}, SHA-256 #{sum.hexdigest}\n"
end

run lambda { |env|
  body =
    case env["PATH_INFO"]
    when "/" then PAGE.call(env)
    when "/upload" then UPLOAD.call(env)
    when "/slow" then sleep(2) && "slept two seconds\n"
    end
  next [404, { "Content-Type" => "text/plain" }, ["There is nothing here; try / or /upload.\n"]] unless body

  [200, { "Content-Type" => "text/plain; charset=utf-8", "Content-Length" => body.bytesize.to_s }, [body]]
}
