fn main() -> std::io::Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_default();
    palisade::audit::command(std::path::Path::new(&dir), palisade::audit::Format::Table, None, &[], &mut std::io::stdout()).map(|_| ())
}
