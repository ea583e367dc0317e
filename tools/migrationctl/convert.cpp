// SPDX-License-Identifier: Apache-2.0
//
// convert: the same machine in a file of another kind.
//
//   from \ to      plain, libvirt-raw                          mapped-ram, libvirt-sparse
//   a stream       its bytes, while the walk proves them       pages are put in their places as they come
//   with places    bitmaps first, then pages in order          bitmaps first, then pages to their new places
//
// One pass over the pages, in constant memory; pages that are zero become holes, or records of nine bytes.
#include "protocol/stream/compressed_page.hpp"
#include "protocol/stream/globalstate.hpp"
#include "protocol/stream/xbzrle.hpp"
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/image_walk.hpp"
#include "tools/migrationctl/image_writer.hpp"
#include "tools/migrationctl/memory_map.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <array>

namespace migrationd::ctl {

namespace {

using stream::page_bytes;

constexpr std::size_t copy_bytes = std::size_t{1} << 20;

// A plain stream's pages into their places.
class ToPlaces final : public ImageVisitor {
 public:
  ToPlaces(Target& target, const WalkedImage& image) : out_(target, image) {}
  Result<void> blocks_known(const WalkedImage&) override { return out_.begin(); }
  Result<void> zero_pages(std::size_t block, std::uint64_t first, std::uint64_t count) override {
    return out_.zeros(block, first, count);
  }
  Result<void> page(std::size_t block, std::uint64_t page, ByteView bytes) override {
    return out_.pages(block, page, bytes);
  }
  Result<void> encoded_page(std::size_t block, std::uint64_t page, const stream::RamRecord& record) override {
    std::array<std::byte, page_bytes> bytes{};
    if (record.kind == stream::RamKind::xbzrle) {
      MD_CHECK(out_.read_page(block, page, bytes));
      MD_CHECK(stream::xbzrle_decode(record.payload, bytes));
    } else {
      MD_CHECK(inflater_.inflate(record.payload, bytes));
    }
    return out_.pages(block, page, bytes);
  }
  Result<void> end() { return out_.end(); }

 private:
  PlacesWriter out_;
  stream::PageInflater inflater_;
};

// Pages by their bitmaps, from their places to `out`.
template <class Writer>
Result<void> copy_pages(const OpenedImage& input, const WalkedImage& image, const MemoryMap& memory, Writer& out,
                        const StopSource& stop) {
  const auto read = reading(input.fd.get());
  Bytes buffer(copy_bytes);
  for (std::size_t block = 0; block < image.blocks.size(); ++block) {
    const Bitmap& data = memory.data()[block];
    for (std::uint64_t page = 0; page < data.size();) {
      if (stop.requested()) return cancelled_error();
      const std::uint64_t first = data.find_set(page);
      if (first > page) MD_CHECK(out.zeros(block, page, first - page));
      const std::uint64_t end =
          data.find_clear(first, std::min<std::uint64_t>(data.size(), first + copy_bytes / page_bytes));
      page = end;
      if (end == first) continue;
      const auto run = std::span(buffer).first(static_cast<std::size_t>((end - first) * page_bytes));
      MD_TRY(const std::size_t got, read(image.blocks[block].place->pages_offset + first * page_bytes, run));
      if (got < run.size()) return wire_error("the file shrank while it was read");
      MD_CHECK(out.pages(block, first, run));
    }
  }
  return {};
}

// Whether the machine ran when it was saved: libvirt's header knows, else the stream.
bool ran(const OpenedImage& input, const WalkedImage& image) {
  if (input.image.libvirt) return input.image.libvirt->was_running;
  for (const stream::DeviceSection& one : image.devices->sections) {
    if (one.name != stream::globalstate_name) continue;
    const auto state = stream::read_run_state(one.body);
    return state && *state == "running";
  }
  return false;
}

template <class Writer>
Result<void> from_places(const OpenedImage& input, Target& target, StopSource& stop, WalkedImage& walked) {
  MemoryMap memory;
  MD_CHECK(walk_image(input, memory, stop, walked));
  Writer out(target, walked);
  MD_CHECK(out.begin());
  MD_CHECK(copy_pages(input, walked, memory, out, stop));
  return out.end();
}

Result<void> to_places(const OpenedImage& input, Target& target, StopSource& stop, WalkedImage& walked) {
  ToPlaces out(target, walked);
  MD_CHECK(walk_image(input, out, stop, walked));
  return out.end();
}

Result<void> copy_stream(const OpenedImage& input, Target& target, StopSource& stop, WalkedImage& walked) {
  ImageVisitor nothing;
  return walk_image(input, nothing, stop, walked, [&](ByteView bytes) {
    const iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
    return target.file->write({&piece, 1});
  });
}

struct Kind {
  bool places = false;
  bool libvirt = false;
};

Result<Kind> kind_named(const std::string& name) {
  if (name == "plain") return Kind{false, false};
  if (name == "mapped-ram") return Kind{true, false};
  if (name == "libvirt-raw") return Kind{false, true};
  if (name == "libvirt-sparse") return Kind{true, true};
  return plan_error(fmt::format("'{}' is no kind of file: plain, mapped-ram, libvirt-raw, libvirt-sparse", name));
}

Result<stream::SaveImageText> texts_for(const OpenedImage& input, const ConvertOptions& options) {
  if (!options.libvirt_xml.empty()) {
    MD_TRY(std::string xml, read_text(options.libvirt_xml, stream::save_image_data_max));
    return stream::SaveImageText{std::move(xml), {}};
  }
  if (input.image.libvirt) return stream::read_save_image_texts(reading(input.fd.get()), *input.image.libvirt);
  return plan_error("a save image of libvirt needs the domain's XML: --libvirt XMLFILE");
}

// Emptying the output must not empty the input.
Result<void> check_two_files(const OpenedImage& input, const std::string& output) {
  struct stat in {};
  struct stat out {};
  if (::fstat(input.fd.get(), &in) != 0) return Error::from_errno("examine the input");
  if (::stat(output.c_str(), &out) != 0 || in.st_dev != out.st_dev || in.st_ino != out.st_ino) return {};
  return plan_error("input and output are the same file");
}

}  // namespace

Result<int> convert(const Output& output, const ConvertOptions& options) {
  MD_TRY(const Kind to, kind_named(options.to));
  MD_TRY(const auto stop, StopSource::make());
  MD_TRY(const OpenedImage input, open_image(options.input));
  MD_CHECK(input.image.check_usable());
  MD_CHECK(check_two_files(input, options.output));
  stream::SaveImageText texts;
  stream::NewSaveImage image;
  if (to.libvirt) {
    MD_TRY(texts, texts_for(input, options));
    image.xml = texts.xml;
    image.cookie = texts.cookie;
    image.format = to.places ? stream::SaveImageFormat::sparse : stream::SaveImageFormat::raw;
  }
  MD_TRY(Target target, open_target(options.output, to.libvirt ? &image : nullptr, *stop));
  WalkedImage walked;
  const bool from = input.image.has_places();
  auto done = !from       ? (to.places ? to_places : copy_stream)(input, target, *stop, walked)
              : to.places ? from_places<PlacesWriter>(input, target, *stop, walked)
                          : from_places<PlainWriter>(input, target, *stop, walked);
  if (!done) return std::move(done).error().with(fmt::format("{} stays incomplete", printable(options.output, 4096)));
  if (target.libvirt) target.libvirt->set_was_running(ran(input, walked));
  MD_CHECK(target.finish());
  if (output.json) fmt::print("{}\n", Json{{"file", options.output}, {"kind", options.to}}.dump());
  return exit_done;
}

}  // namespace migrationd::ctl
