// SPDX-License-Identifier: Apache-2.0
//
// inspect: what a file holds, whether it is whole, its memory as a picture, and its devices in words.
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/device_values.hpp"
#include "tools/migrationctl/file_access.hpp"
#include "tools/migrationctl/image_walk.hpp"
#include "tools/migrationctl/memory_map.hpp"
#include "tools/migrationctl/memory_picture.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace migrationd::ctl {

namespace {

struct Inspected {
  OpenedImage file;
  std::uint64_t on_disk = 0;
  WalkedImage walked;
  MemoryMap memory;
  std::optional<std::string> problem;  // why it is not whole
  std::vector<DescribedSection> devices;
};

std::uint64_t bytes_on_disk(int fd) {
  struct stat about {};
  return ::fstat(fd, &about) == 0 ? static_cast<std::uint64_t>(about.st_blocks) * 512 : 0;
}

Result<void> walk(Inspected& out, StopSource& stop) {
  out.on_disk = bytes_on_disk(out.file.fd.get());
  auto walked = walk_image(out.file, out.memory, stop, out.walked);
  if (!walked && walked.error().is_cancelled()) return walked;
  // A decompressor that is missing says nothing about the file.
  if (!walked && walked.error().kind() == ErrorKind::plan) return walked;
  if (!walked) out.problem = walked.error().text();
  if (out.walked.devices) out.devices = describe_devices(*out.walked.devices);
  return {};
}

std::uint64_t data_pages(const Inspected& file, std::size_t block) {
  return block < file.memory.data().size() ? file.memory.data()[block].count() : 0;
}

double share(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::string uuid_text(const stream::Uuid& uuid) {
  std::string out;
  for (std::size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    out += fmt::format("{:02x}", std::to_integer<unsigned>(uuid[i]));
  }
  return out;
}

std::string_view proof_name(stream::TailProof proof) {
  switch (proof) {
    case stream::TailProof::description:
      return "description";
    case stream::TailProof::names:
      return "names";
    case stream::TailProof::footers:
      break;
  }
  return "footers";
}

// --- JSON -----------------------------------------------------------------------------------------------------------

Json block_json(const Inspected& file, std::size_t index) {
  const WalkedBlock& one = file.walked.blocks[index];
  const std::uint64_t data = data_pages(file, index);
  Json out{{"name", printable(one.block.name, 255)},
           {"size", one.block.used_length},
           {"page-size", one.block.page_size.value_or(stream::page_bytes)},
           {"pages", one.pages()},
           {"data-pages", data},
           {"zero-pages", one.pages() - data}};
  if (one.place) {
    out["bitmap-offset"] = one.place->bitmap_offset;
    out["pages-offset"] = one.place->pages_offset;
  }
  return out;
}

Json device_json(const DescribedSection& one) {
  Json out{{"name", one.name}, {"instance", one.instance}, {"version", one.version}, {"bytes", one.bytes}};
  if (one.early) out["early"] = true;
  if (one.values) out["fields"] = *one.values;
  return out;
}

Json libvirt_json(const stream::SaveImageHeader& header) {
  return {{"version", header.version},
          {"format", stream::to_name(header.format)},
          {"was-running", header.was_running},
          {"byte-swapped", header.byte_swapped},
          {"xml-bytes", header.data_length}};
}

void print_json(const Inspected& file) {
  const stream::Image& image = file.file.image;
  Json out{{"file", file.file.path},    {"kind", stream::to_name(image.kind)},
           {"complete", !file.problem}, {"size", file.file.size},
           {"on-disk", file.on_disk},   {"stream-offset", image.stream_offset}};
  if (file.problem) out["problem"] = *file.problem;
  if (image.libvirt) out["libvirt"] = libvirt_json(*image.libvirt);
  if (file.walked.configuration) {
    const stream::Configuration& configuration = *file.walked.configuration;
    out["machine"] = printable(configuration.machine_name, 255);
    if (configuration.uuid) out["uuid"] = uuid_text(*configuration.uuid);
    out["capabilities"] = Json::array();
    for (const std::string& name : configuration.capabilities.value_or(std::vector<std::string>()))
      out["capabilities"].push_back(printable(name));
  }
  out["blocks"] = Json::array();
  for (std::size_t i = 0; i < file.walked.blocks.size(); ++i) out["blocks"].push_back(block_json(file, i));
  if (file.walked.devices) {
    out["repeated-pages"] = file.memory.repeated();
    out["proof"] = proof_name(file.walked.devices->proof);
    out["devices"] = Json::array();
    for (const DescribedSection& one : file.devices) out["devices"].push_back(device_json(one));
  }
  fmt::print("{}\n", out.dump(2));
}

// --- text -----------------------------------------------------------------------------------------------------------

void print_head(const Inspected& file) {
  const stream::Image& image = file.file.image;
  fmt::print("{}: {}\n", file.file.path, stream::to_name(image.kind));
  fmt::print("  complete   {}\n", file.problem ? fmt::format("no: {}", *file.problem) : "yes");
  fmt::print("  file       {}, {} on the disk; the stream begins at {}\n", size_text(file.file.size),
             size_text(file.on_disk), hex(image.stream_offset));
  if (image.libvirt) {
    fmt::print("  libvirt    version {}, {}, the domain {} after a restore (--xml shows it)\n", image.libvirt->version,
               stream::to_name(image.libvirt->format), image.libvirt->was_running ? "runs" : "stays paused");
  }
  if (file.walked.configuration) {
    const stream::Configuration& configuration = *file.walked.configuration;
    fmt::print("  machine    {}{}\n", printable(configuration.machine_name, 255),
               configuration.uuid ? fmt::format(", {}", uuid_text(*configuration.uuid)) : "");
  }
}

void print_blocks(const Inspected& file) {
  if (file.walked.blocks.empty()) return;
  fmt::print("\n{:<32} {:>10} {:>7} {:>10} {:>7}\n", "block", "size", "page", "data", "zero");
  for (std::size_t i = 0; i < file.walked.blocks.size(); ++i) {
    const WalkedBlock& one = file.walked.blocks[i];
    const std::uint64_t data = data_pages(file, i);
    fmt::print("{:<32} {:>10} {:>7} {:>10} {:>6.1f}%\n", printable(one.block.name, 255),
               size_text(one.block.used_length), size_text(one.block.page_size.value_or(stream::page_bytes)),
               size_text(data * stream::page_bytes), 100 * (1 - share(data, one.pages())));
  }
  if (file.memory.repeated() > 0) fmt::print("{} pages come more than once\n", file.memory.repeated());
}

std::size_t terminal_width() {
  winsize size{};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 40 ? size.ws_col : 80;
}

void print_picture(const Inspected& file, const Output& output) {
  constexpr std::size_t most_rows = 16;
  const PictureStyle style =
      picture_style(output.terminal, std::getenv("LC_ALL"), std::getenv("LC_CTYPE"), std::getenv("LANG"));
  const std::size_t width = std::min<std::size_t>(terminal_width() - 16, 128) / 32 * 32;
  fmt::print("\nmemory: {}\n", picture_legend(style));
  for (std::size_t i = 0; i < file.memory.data().size(); ++i) {
    const Picture picture = draw(file.memory.data()[i], std::max<std::size_t>(width, 32), most_rows, style);
    const std::uint64_t cell = picture.pages_per_cell * stream::page_bytes;
    fmt::print("{}, {} a sign\n", printable(file.walked.blocks[i].block.name, 255), size_text(cell));
    std::uint64_t at = 0;
    for (const std::string& row : picture.rows) {
      fmt::print("  {:>11} |{}|\n", hex(at), row);
      at += std::max<std::size_t>(width, 32) * cell;
    }
  }
}

void print_devices(const Inspected& file, bool values) {
  if (!file.walked.devices) return;
  fmt::print("\n{} device sections, told apart by their {}\n", file.devices.size(),
             proof_name(file.walked.devices->proof));
  for (const DescribedSection& one : file.devices) {
    fmt::print("  {:<40} instance {} version {} {:>8} bytes{}\n", one.name, one.instance, one.version, one.bytes,
               one.values ? "" : ", not described");
    if (values && one.values) fmt::print("{}", values_text(*one.values, 6));
  }
  if (!values && !file.devices.empty()) fmt::print("  (--devices shows their fields)\n");
}

// A file or a program gets it as it is; no terminal is driven by it.
std::string shown_xml(const std::string& xml, bool terminal) {
  if (!terminal) return xml;
  std::string out;
  for (const char c : xml) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = byte >= 0x20 ? byte != 0x7f : c == '\n' || c == '\t';
    out += plain ? std::string(1, c) : fmt::format("\\x{:02x}", byte);
  }
  return out;
}

Result<int> print_xml(const OpenedImage& file, const Output& output) {
  if (!file.image.libvirt) return wire_error(fmt::format("{} is no save image of libvirt: it has no XML", file.path));
  MD_TRY(const stream::SaveImageText texts, stream::read_save_image_texts(reading(file.fd.get()), *file.image.libvirt));
  fmt::print("{}{}", shown_xml(texts.xml, output.terminal), texts.xml.ends_with('\n') ? "" : "\n");
  return exit_done;
}

}  // namespace

Result<int> inspect(const Output& output, const InspectOptions& options) {
  MD_TRY(const auto stop, StopSource::make());
  Inspected file;
  MD_TRY(file.file, open_image(options.path));
  if (options.xml) return print_xml(file.file, output);
  MD_CHECK(walk(file, *stop));
  if (output.json) {
    print_json(file);
  } else {
    print_head(file);
    print_blocks(file);
    if (!file.memory.data().empty()) print_picture(file, output);
    print_devices(file, options.devices);
  }
  return file.problem ? exit_refused : exit_done;
}

}  // namespace migrationd::ctl
