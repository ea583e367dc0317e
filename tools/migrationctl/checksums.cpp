// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/checksums.hpp"

#include "tools/migrationctl/file_access.hpp"

#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

namespace migrationd::ctl {

namespace {

constexpr std::string_view head = "migrationd-sums 1\nhash xxh3-128\nchunk 1048576\n";
static_assert(sums_chunk_bytes == 1048576, "the head says so");
constexpr std::size_t digest_digits = 32;

struct CloseFile {
  void operator()(std::FILE* file) const noexcept { std::fclose(file); }
};
using Stream = std::unique_ptr<std::FILE, CloseFile>;

bool is_zero(ByteView bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

std::string digest_of(ByteView bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

// The chunks of a file that are not all zero, in order.
class Chunks {
 public:
  static Result<Chunks> of(const std::string& path) {
    Chunks out;
    MD_TRY(out.fd_, open_for_reading(path));
    MD_TRY(out.size_, size_of(out.fd_.get()));
    out.buffer_.resize(sums_chunk_bytes);
    return out;
  }
  std::uint64_t size() const noexcept { return size_; }

  // Nothing behind the last one.
  Result<std::optional<SumsLine>> next() {
    while (at_ < size_) {
      MD_CHECK(skip_hole());
      if (at_ >= size_) break;
      const std::uint64_t start = at_ - at_ % sums_chunk_bytes;
      const auto count = static_cast<std::size_t>(std::min(sums_chunk_bytes, size_ - start));
      MD_TRY(const std::size_t got, reading(fd_.get())(start, std::span(buffer_).first(count)));
      if (got < count) return wire_error("the file shrank while it was read");
      at_ = start + sums_chunk_bytes;
      const ByteView bytes = ByteView(buffer_).first(count);
      if (!is_zero(bytes)) return std::optional(SumsLine{start / sums_chunk_bytes, digest_of(bytes)});
    }
    return std::optional<SumsLine>();
  }

 private:
  Result<void> skip_hole() {
    const off_t data = ::lseek(fd_.get(), static_cast<off_t>(at_), SEEK_DATA);
    if (data >= 0) {
      at_ = std::max(at_, static_cast<std::uint64_t>(data));
    } else if (errno == ENXIO) {
      at_ = size_;
    } else if (errno != EINVAL) {  // a file system without holes: all is data
      return Error::from_errno("look for holes");
    }
    return {};
  }

  UniqueFd fd_;
  std::uint64_t size_ = 0;
  std::uint64_t at_ = 0;
  Bytes buffer_;
};

Result<std::uint64_t> write_lines(const std::string& path, std::FILE* out) {
  MD_TRY(Chunks chunks, Chunks::of(path));
  fmt::print(out, "{}size {}\n", head, chunks.size());
  std::uint64_t count = 0;
  while (true) {
    MD_TRY(const auto chunk, chunks.next());
    if (!chunk) break;
    fmt::print(out, "{} {}\n", chunk->chunk, chunk->digest);
    ++count;
  }
  fmt::print(out, "end {}\n", count);
  return count;
}

// A line without its line feed; nothing at the end of the file.
Result<std::optional<std::string>> read_line(std::FILE* in) {
  char buffer[128];
  if (std::fgets(buffer, sizeof buffer, in) == nullptr) {
    if (std::ferror(in) != 0) return Error::from_errno("read the checksums");
    return std::optional<std::string>();
  }
  std::string line(buffer);
  if (!line.ends_with('\n')) return wire_error("the checksums are cut off");
  line.pop_back();
  return std::optional(std::move(line));
}

Result<std::uint64_t> number_after(const std::string& line, std::string_view word) {
  std::uint64_t value = 0;
  const char* const end = line.data() + line.size();
  if (line.starts_with(word)) {
    const auto parsed = std::from_chars(line.data() + word.size(), end, value);
    if (parsed.ec == std::errc() && parsed.ptr == end) return value;
  }
  return wire_error(fmt::format("the checksums have '{}' where '{}N' is due", printable(line), word));
}

Result<std::uint64_t> read_head(std::FILE* in) {
  std::string got;
  for (int i = 0; i < 3; ++i) {
    MD_TRY(const auto line, read_line(in));
    if (line) got += *line + "\n";
  }
  if (got != head) return wire_error("the checksums are of no format that is known here");
  MD_TRY(const auto size, read_line(in));
  return number_after(size.value_or(""), "size ");
}

// The next chunk that FILE.sums names; nothing at its end, which is checked.
class NamedChunks {
 public:
  explicit NamedChunks(std::FILE* in) : in_(in) {}
  std::uint64_t count() const noexcept { return count_; }

  Result<std::optional<SumsLine>> next() {
    MD_TRY(const auto line, read_line(in_));
    if (!line) return wire_error("the checksums are cut off");
    if (line->starts_with("end ")) {
      MD_TRY(const std::uint64_t count, number_after(*line, "end "));
      if (count != count_) return wire_error(fmt::format("the checksums have {} lines and say {}", count_, count));
      return std::optional<SumsLine>();
    }
    MD_TRY(SumsLine parsed, parse_sums_line(*line));
    if (count_ > 0 && parsed.chunk <= last_) return wire_error("the checksums are out of order");
    last_ = parsed.chunk;
    ++count_;
    return std::optional(std::move(parsed));
  }

 private:
  std::FILE* in_;
  std::uint64_t count_ = 0;
  std::uint64_t last_ = 0;
};

void note_wrong(SumsReport& report, std::uint64_t chunk) {
  ++report.wrong;
  if (!report.first_wrong) report.first_wrong = chunk * sums_chunk_bytes;
}

Result<SumsReport> compare(Chunks& chunks, NamedChunks& named) {
  SumsReport report;
  MD_TRY(auto is, chunks.next());
  MD_TRY(auto should, named.next());
  while (is || should) {
    const bool only_named = !is || (should && should->chunk < is->chunk);
    const bool only_there = !should || (is && is->chunk < should->chunk);
    ++report.chunks;
    if (only_named || only_there || is->digest != should->digest)
      note_wrong(report, only_named ? should->chunk : is->chunk);
    if (!only_named) {
      MD_TRY(is, chunks.next());
    }
    if (!only_there) {
      MD_TRY(should, named.next());
    }
  }
  return report;
}

}  // namespace

std::string sums_path(const std::string& path) { return path + ".sums"; }

Result<SumsLine> parse_sums_line(std::string_view line) {
  const std::size_t blank = line.find(' ');
  SumsLine out;
  if (blank != std::string_view::npos) {
    const auto parsed = std::from_chars(line.data(), line.data() + blank, out.chunk);
    out.digest = line.substr(blank + 1);
    const bool digits = out.digest.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (parsed.ec == std::errc() && parsed.ptr == line.data() + blank && out.digest.size() == digest_digits && digits &&
        out.chunk <= UINT64_MAX / sums_chunk_bytes) {
      return out;
    }
  }
  return wire_error(fmt::format("the checksums have a line '{}'", printable(line)));
}

Result<std::uint64_t> write_sums(const std::string& path) {
  const std::string final_name = sums_path(path);
  const std::string fresh = final_name + ".new";
  MD_TRY(UniqueFd fd, create_for_writing(fresh));
  MD_TRY(UniqueFd kept, fd.duplicate());
  const Stream out(::fdopen(fd.release(), "w"));
  if (!out) return Error::from_errno("write the checksums");
  auto count = write_lines(path, out.get());
  if (count && (std::fflush(out.get()) != 0 || std::ferror(out.get()) != 0)) {
    count = Error::from_errno("write the checksums");
  }
  if (count && std::rename(fresh.c_str(), final_name.c_str()) != 0) count = Error::from_errno("name the checksums");
  if (!count) {
    ::unlink(fresh.c_str());
    return count;
  }
  MD_CHECK(make_durable(kept.get(), final_name));
  return count;
}

Result<std::optional<SumsReport>> check_sums(const std::string& path) {
  const std::string name = sums_path(path);
  const Stream in(std::fopen(name.c_str(), "re"));
  if (!in) {
    if (errno == ENOENT) return std::optional<SumsReport>();
    return Error::from_errno(fmt::format("Could not open '{}'", printable(name, 4096)));
  }
  MD_TRY(const std::uint64_t size, read_head(in.get()));
  MD_TRY(Chunks chunks, Chunks::of(path));
  if (chunks.size() != size) {
    return wire_error(fmt::format("the file has {} bytes, its checksums are of {}", chunks.size(), size));
  }
  NamedChunks named(in.get());
  MD_TRY(SumsReport report, compare(chunks, named));
  return std::optional(report);
}

}  // namespace migrationd::ctl
